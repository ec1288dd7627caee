"""YOLOv3 matches the reference, and parity notices changes in its new parts."""

import parity_runs
import pytest

CASE = "yolov3_d53"
MAPS = {f"{kind}_{level}" for kind in ("neck fpn", "map pred_map") for level in range(3)}


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys):
    run = parity_runs.in_full(capsys, shared_dir / "parity", CASE)
    assert MAPS < set(run.passed)
    # The norms of neck and head are live, those of the backbone are not.
    assert sum(line.startswith("buffer") for line in run.passed) == 2 * 20


CONTROLS = {
    "weight of the sizes": (
        ("model_cfg", "bbox_head", "loss_wh", "loss_weight", 2.01),
        {"loss loss_wh"},
        ("neck", "map", "assignment", "targets", "detections", "loss loss_cls", "loss loss_xy"),
    ),
    "threshold of the assignment": (
        ("train_cfg", "assigner", "neg_iou_thr", 0.4),
        {"assignment train_assign.bbox_head.assigner.0.gt_inds", "loss loss_conf"},
        ("neck", "map", "detections", "loss loss_cls", "loss loss_wh"),
    ),
    "number of candidates": (
        ("test_cfg", "nms_pre", 60),
        {"detections count"},
        ("neck", "map", "assignment", "targets", "loss"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_another_configuration_is_noticed(name, shared_dir, capsys, tmp_path):
    """Without gradients, which take most of the time to compile."""
    path, touched, untouched = CONTROLS[name]
    change = parity_runs.config_change(*path)
    parity_runs.changed(shared_dir / "parity", tmp_path, change, CASE)
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    assert touched <= set(run.missed)
    assert not any(line.startswith(untouched) for line in run.missed)

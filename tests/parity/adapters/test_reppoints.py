"""What parity notices in RepPoints, and its table; test_small.py runs its cases."""

import json
import shutil

import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_reppoints


@pytest.mark.slow
def test_another_box_of_the_points_is_noticed(shared_dir, capsys, tmp_path):
    """Without gradients, which take most of the time to compile."""
    name = "small/reppoints_minmax_r50_fpn_gn_small"
    info = json.loads((shared_dir / "parity" / f"{name}.json").read_text())
    info.update(grad_norms={}, grad_dots={})
    info["model_cfg"]["bbox_head"]["transform_method"] = "partial_minmax"
    (tmp_path / "small").mkdir()
    (tmp_path / f"{name}.json").write_text(json.dumps(info))
    shutil.copy(shared_dir / "parity" / f"{name}.npz", tmp_path / "small")
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    touched = {"map bbox_out_refine_0", "loss loss_pts_init", "loss loss_pts_refine"}
    assert touched | {"detections boxes"} <= set(run.missed)
    same = ("neck", "map cls_out", "map train_", "assignment train_assign.bbox_head.init")
    assert not any(line.startswith(same) for line in run.missed if "get_targets" not in line)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_the_table_knows_both_norms_and_deformable_kernels(norm):
    fields = {**tiny.TINY["reppoints"].fields, "norm": norm}
    if norm == "none":
        fields["transform"] = "minmax"  # without the leaf of the moments
    _, tensors = tables.there_and_back(mmdet_reppoints.table(bgr=True), "reppoints", fields)
    assert tensors["bbox_head.reppoints_cls_conv.weight"].shape == (16, 16, 3, 3)
    assert ("bbox_head.moment_transfer" in tensors) == (norm == "group")
    assert ("neck.fpn_convs.0.gn.weight" in tensors) == (norm == "group")

"""What parity notices in Dynamic R-CNN; test_small.py runs its case."""

import parity_runs
import pytest

CASE = "small/dynamic_rcnn_r50_fpn_small"


@pytest.mark.slow
def test_a_threshold_that_stays_is_noticed(shared_dir, capsys, tmp_path):
    path = "train_cfg", "rcnn", "dynamic_rcnn", "update_iter_interval"
    change = parity_runs.config_change(*path, 100)
    run = parity_runs.run(
        capsys, parity_runs.changed(shared_dir / "parity", tmp_path, change, case=CASE)
    )
    assert run.status == 1
    assert run.missed == ["state pos_iou_thr_after", "state smooth_l1_beta_after"]

"""What parity notices in Cascade R-CNN, and its table; test_small.py runs its case."""

import numpy as np
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_cascade_rcnn

CASE = "small/cascade_rcnn_r50_fpn_small"


@pytest.mark.slow
def test_thresholds_that_do_not_rise_are_noticed(shared_dir, capsys, tmp_path):
    def change(info):
        first, *others = info["train_cfg"]["rcnn"]
        assert all(stage["assigner"] != first["assigner"] for stage in others)
        for stage in others:
            stage["assigner"] = first["assigner"]

    run = parity_runs.run(
        capsys, parity_runs.changed(shared_dir / "parity", tmp_path, change, case=CASE)
    )
    assert run.status == 1
    stages = {line.split(".")[3] for line in run.missed if "bbox_assigner" in line}
    assert stages and "0" not in stages
    assert any(line.startswith("loss s") for line in run.missed)
    same = ("neck", "map", "assignment train_assign.rpn_head", "detections", "loss s0")
    assert not any(line.startswith(same) for line in run.missed)


def test_the_table_reorders_flattened_features_of_every_stage():
    fields = {**tiny.TINY["cascade_rcnn"].fields, "box_width": 8}
    table = mmdet_cascade_rcnn.table(bgr=True)
    leaves, tensors = tables.there_and_back(table, "cascade_rcnn", fields)
    for stage in range(len(fields["stage_ious"])):
        fc = tensors[f"roi_head.bbox_head.{stage}.shared_fcs.0.weight"].reshape(8, 16, 7, 7)
        kernel = leaves[f"params/box_head_{stage}/fc0/kernel"].reshape(7, 7, 16, 8)
        np.testing.assert_array_equal(fc[5, 3, 2, 6], kernel[2, 6, 3, 5])

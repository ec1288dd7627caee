"""What parity notices in Faster R-CNN, and its table; test_small.py runs its case."""

import json
import shutil

import numpy as np
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_faster_rcnn

CASE = "small/faster_rcnn_r50_fpn_small"


@pytest.mark.slow
def test_the_samples_of_a_bin_are_noticed(shared_dir, capsys, tmp_path):
    """Without gradients, which take most of the time to compile."""
    info = json.loads((shared_dir / "parity" / f"{CASE}.json").read_text())
    info.update(grad_norms={}, grad_dots={})
    info["model_cfg"]["roi_head"]["bbox_roi_extractor"]["roi_layer"]["sampling_ratio"] = 2
    (tmp_path / "small").mkdir()
    (tmp_path / f"{CASE}.json").write_text(json.dumps(info))
    shutil.copy(shared_dir / "parity" / f"{CASE}.npz", tmp_path / "small")
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    assert {"map roi_cls_score_0", "map roi_bbox_pred_0", "detections scores"} <= set(run.missed)
    assert not any(line.startswith(("neck", "assignment", "map rpn")) for line in run.missed)


def test_the_table_reorders_flattened_features():
    """The reference flattens channel, row, column; detlab flattens row, column, channel."""
    fields = {**tiny.TINY["faster_rcnn"].fields, "box_width": 8}
    table = mmdet_faster_rcnn.table(bgr=True)
    leaves, tensors = tables.there_and_back(table, "faster_rcnn", fields)
    fc = tensors["roi_head.bbox_head.shared_fcs.0.weight"].reshape(8, 16, 7, 7)
    kernel = leaves["params/box_head/fc0/kernel"].reshape(7, 7, 16, 8)
    np.testing.assert_array_equal(fc[5, 3, 2, 6], kernel[2, 6, 3, 5])

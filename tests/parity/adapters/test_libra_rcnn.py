"""What parity notices in Libra R-CNN, and its table; test_small.py runs its case."""

import numpy as np
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_libra_rcnn

CASE = "small/libra_faster_rcnn_r50_fpn_small"


@pytest.mark.slow
def test_a_pyramid_that_is_not_refined_is_noticed(shared_dir, capsys, tmp_path, monkeypatch):
    parity_runs.without_weights(monkeypatch, "balance")
    fixtures = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, case=CASE)
    run = parity_runs.run(capsys, fixtures)
    assert run.status == 1
    assert {"neck fpn_0", "map rpn_cls_0", "detections scores"} <= set(run.missed)


@pytest.mark.slow
def test_a_box_loss_that_is_not_balanced_is_noticed(shared_dir, capsys, tmp_path):
    path = "model_cfg", "roi_head", "bbox_head", "loss_bbox", "alpha"
    change = parity_runs.config_change(*path, 50.0)  # close to smooth L1
    run = parity_runs.run(
        capsys, parity_runs.changed(shared_dir / "parity", tmp_path, change, case=CASE)
    )
    assert run.status == 1
    assert run.missed == ["loss loss_bbox", "loss total"]


def test_the_table_knows_both_necks():
    fields = tiny.TINY["libra_rcnn"].fields
    leaves, tensors = tables.there_and_back(mmdet_libra_rcnn.table(bgr=True), "libra_rcnn", fields)
    assert tensors["neck.0.fpn_convs.0.conv.weight"].shape == (16, 16, 3, 3)
    weight = tensors["neck.1.refine.conv_out.conv.weight"][..., 0, 0]
    np.testing.assert_array_equal(weight.T, leaves["params/balance/refine/output/kernel"][0, 0])

"""What parity notices in SABL R-CNN, and its table; test_small.py runs its cases."""

import jax.numpy as jnp
import numpy as np
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_sabl_rcnn
from detlab.heads import sabl
from detlab.ops import coders

CASE = "small/sabl_faster_rcnn_r50_fpn_small"


@pytest.fixture
def missed(shared_dir, tmp_path, capsys):
    """`missed()`: the lines that miss, without gradients."""

    def run():
        folder = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
        return set(parity_runs.run(capsys, folder).missed)

    return run


@pytest.mark.slow
def test_the_second_bucket_and_unrectified_scores_are_noticed(missed, monkeypatch):
    """Both in one run, as the first is only in training and the second only in detections."""
    encode, decode = coders.encode_buckets, coders.decode_buckets

    def nearest(*arguments):
        return (found := encode(*arguments))._replace(offset_weights=found.labels)

    def sure(*arguments, **options):
        boxes, confidence = decode(*arguments, **options)
        return boxes, jnp.ones_like(confidence)

    monkeypatch.setattr(coders, "encode_buckets", nearest)
    monkeypatch.setattr(coders, "decode_buckets", sure)
    found = missed()
    detections = {line for line in found if line.startswith("detections")}
    assert "detections scores" in detections
    assert found - detections == {
        "targets train_targets.roi_head.bbox_head.get_targets.0.3_1",
        "loss loss_bbox_reg",
        "loss total",
    }


@pytest.mark.slow
def test_pooling_without_attention_is_noticed_in_sides_alone(missed, monkeypatch):
    def mean(x, attention, axis):
        return x.mean(axis, keepdims=True)

    monkeypatch.setattr(sabl, "pooled", mean)
    found = missed()
    assert {"map roi_bbox_pred_0_0", "map roi_bbox_pred_0_1", "loss loss_bbox_cls"} <= found
    maps = ("neck", "map rpn", "map roi_cls")
    same = (*maps, "assignment", "targets", "loss loss_cls", "loss loss_rpn")
    assert not any(line.startswith(same) for line in found)


@pytest.mark.parametrize("stages", [1, 2])
def test_the_table_fits_one_stage_and_several(stages):
    fields = {**tiny.TINY["sabl_rcnn"].fields, "box_width": 8, "neck_width": 16}
    for name in ("stage_ious", "stage_scales", "stage_weights"):
        fields[name] = fields[name][:stages]
    leaves, tensors = tables.there_and_back(mmdet_sabl_rcnn.table(bgr=True), "sabl_rcnn", fields)
    for stage in range(stages):
        theirs = "roi_head.bbox_head." + (f"{stage}." if stages > 1 else "")
        ours = "params/box_head" + (f"_{stage}" if stages > 1 else "")
        fc = tensors[f"{theirs}cls_fcs.0.weight"].reshape(8, 16, 7, 7)
        kernel = leaves[f"{ours}/fc/kernel"].reshape(7, 7, 16, 8)
        np.testing.assert_array_equal(fc[5, 3, 2, 6], kernel[2, 6, 3, 5])
        up = tensors[f"{theirs}upsample_x.weight"]  # [in, out, position]
        np.testing.assert_array_equal(up[4, 9, 1], leaves[f"{ours}/upsample_x/kernel"][1, 4, 9])
        assert tensors[f"{theirs}reg_post_conv_xs.0.conv.weight"].shape == (16, 16, 1, 3)
        assert tensors[f"{theirs}reg_post_conv_ys.0.conv.weight"].shape == (16, 16, 3, 1)

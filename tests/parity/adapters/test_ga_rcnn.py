"""What parity notices in guided anchors of a region proposal network; test_small.py runs its case.

Each test removes one idea of the paper.
"""

import jax.numpy as jnp
import parity_runs
import pytest
import tables
import tiny

from benchmarks.parity.adapters import ga_rcnn as adapter
from detlab import layers
from detlab.converters.tables import mmdet_ga_rcnn
from detlab.heads import guided_anchor

CASE = "small/ga_faster_rcnn_r50_fpn_small"
TARGETS = "targets train_targets.rpn_head"


@pytest.fixture
def missed(shared_dir, tmp_path, capsys):
    """`missed()`: the lines that miss, without gradients."""

    def run():
        folder = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
        return set(parity_runs.run(capsys, folder).missed)

    return run


@pytest.mark.slow
def test_squares_instead_of_predicted_shapes_are_noticed(missed, monkeypatch):
    def squares(squares, shapes, stds):
        return jnp.broadcast_to(squares, (*shapes.shape[:-1], 4))

    monkeypatch.setattr(guided_anchor, "guided_anchors", squares)
    found = missed()
    assert {"loss rpn_loss_anchor_shape", "loss loss_rpn_bbox"} <= found
    assert {f"{TARGETS}.get_targets.0.2_0", "map train_proposals_0"} <= found
    same = ("neck", "map image0_rpn", "map train_rpn", "loss rpn_loss_anchor_loc")
    same += (f"{TARGETS}.ga_", "assignment train_assign.rpn_head.ga")
    assert not any(line.startswith(same) for line in found)


@pytest.mark.slow
def test_features_that_do_not_follow_the_shapes_are_noticed(missed, monkeypatch):
    real = layers.DeformConv.__call__

    def regular(self, maps, offsets):
        return real(self, maps, tuple(jnp.zeros_like(x) for x in offsets))

    monkeypatch.setattr(layers.DeformConv, "__call__", regular)
    found = missed()
    assert {"map train_rpn_cls_0", "map train_rpn_bbox_0", "loss loss_rpn_cls"} <= found
    same = ("neck", "map train_rpn_loc", "map train_rpn_shape", "assignment train_assign.rpn_head")
    same += (TARGETS, "loss rpn_loss_anchor")
    assert not any(line.startswith(same) for line in found)


@pytest.mark.slow
def test_locations_as_in_the_paper_are_noticed_in_their_loss_alone(missed, monkeypatch):
    fields = adapter.ADAPTER.fields

    def of_the_paper(info):
        return {**fields(info), "inverted_locations": False}

    monkeypatch.setattr(
        "benchmarks.parity.mmdet.ADAPTERS", (adapter.ADAPTER._replace(fields=of_the_paper),)
    )
    assert missed() == {"loss rpn_loss_anchor_loc", "loss total"}


def test_the_table_knows_the_names_of_both_stages():
    fields = tiny.TINY["ga_rcnn"].fields
    leaves, tensors = tables.there_and_back(mmdet_ga_rcnn.table(bgr=True), "ga_rcnn", fields)
    assert tensors["rpn_head.feature_adaption.conv_offset.weight"].shape == (2 * 9 * 2, 2, 1, 1)
    assert tensors["rpn_head.conv_reg.weight"].shape == (4, 16, 1, 1)
    weight = tensors["rpn_head.feature_adaption.conv_adaption.weight"]
    kernel = leaves["params/rpn/adaption/deform/kernel"]
    assert (weight.transpose(2, 3, 1, 0) == kernel).all()

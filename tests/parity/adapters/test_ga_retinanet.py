"""What parity notices in guided anchors; test_small.py runs their case."""

import jax.numpy as jnp
import parity_runs
import pytest

from benchmarks.parity.adapters import ga_retinanet as adapter
from detlab import layers
from detlab.heads import guided_anchor

CASE = "small/ga_retinanet_r50_fpn_small"
TARGETS = "targets train_targets.bbox_head"
pytestmark = pytest.mark.slow


@pytest.fixture
def missed(shared_dir, tmp_path, capsys):
    """`missed()`: the lines that miss, without gradients."""

    def run():
        folder = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
        return set(parity_runs.run(capsys, folder).missed)

    return run


def test_squares_instead_of_predicted_shapes_are_noticed(missed, monkeypatch):
    def squares(squares, shapes, stds):
        return jnp.broadcast_to(squares, (*shapes.shape[:-1], 4))

    monkeypatch.setattr(guided_anchor, "guided_anchors", squares)
    found = missed()
    assert {"loss loss_shape", "loss loss_bbox", f"{TARGETS}.get_targets.0.2_0"} <= found
    assert "detections boxes" in found
    same = (
        "neck",
        "map",
        "loss loss_loc",
        f"{TARGETS}.ga_",
        "assignment train_assign.bbox_head.ga",
    )
    assert not any(line.startswith(same) for line in found)


def test_features_that_do_not_follow_the_shapes_are_noticed(missed, monkeypatch):
    real = layers.DeformConv.__call__

    def regular(self, maps, offsets):
        return real(self, maps, tuple(jnp.zeros_like(x) for x in offsets))

    monkeypatch.setattr(layers.DeformConv, "__call__", regular)
    found = missed()
    assert {"map train_cls_score_0", "map train_bbox_pred_0", "loss loss_cls"} <= found
    same = ("neck", "map train_loc", "map train_shape", "assignment", "targets", "loss loss_loc")
    assert not any(line.startswith(same) for line in found)


def test_locations_as_in_the_paper_are_noticed_in_their_loss_alone(missed, monkeypatch):
    fields = adapter.ADAPTER.fields

    def of_the_paper(info):
        return {**fields(info), "inverted_locations": False}

    monkeypatch.setattr(
        "benchmarks.parity.mmdet.ADAPTERS", (adapter.ADAPTER._replace(fields=of_the_paper),)
    )
    assert missed() == {"loss loss_loc", "loss total"}

"""What parity notices in Faster R-CNN with PISA, and its table; test_small.py runs its case."""

import jax.numpy as jnp
import parity_runs
import pytest
import tables
import tiny

from detlab.assign import ranked
from detlab.converters.tables import mmdet_faster_rcnn, mmdet_pisa_rcnn
from detlab.losses import pisa

CASE = "small/pisa_faster_rcnn_r50_fpn_small"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, without, missed",
    [
        (
            "_ranks",
            lambda groups, *keys: jnp.zeros_like(groups),
            "gradient norm roi_head.bbox_head.shared_fcs.0.weight",
        ),
        (
            "isr_negative_weights",
            lambda rank, *others: jnp.ones(rank.shape),
            "gradient norm roi_head.bbox_head.fc_cls.weight",
        ),
    ],
    ids=["positives", "negatives"],
)
def test_weights_without_a_rank_are_noticed(name, without, missed, shared_dir, capsys, monkeypatch):
    """Only gradients show it: the weights keep the sum of the losses, whatever the ranks."""
    monkeypatch.setattr(pisa, name, without)
    run = parity_runs.run(capsys, shared_dir / "parity", "--case", CASE)
    assert run.status == 1 and missed in run.missed
    assert all(line.startswith("gradient") for line in run.missed)
    assert not any("fc_reg" in line for line in run.missed)


@pytest.mark.slow
def test_negatives_that_are_ranked_by_score_alone_are_noticed(
    shared_dir, capsys, tmp_path, monkeypatch
):
    """Without groups of overlapping boxes.  The reference lists negatives by rank."""

    def by_score(boxes, scores, counted, iou):
        return ranked.ranks.in_groups(counted.astype(jnp.int32), scores)

    monkeypatch.setattr(ranked, "ranks_of", by_score)
    fixtures = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, case=CASE)
    run = parity_runs.run(capsys, fixtures)
    assert run.status == 1 and run.missed == ["map train_rois_2"]


@pytest.mark.slow
def test_factors_that_do_not_follow_the_score_are_noticed(shared_dir, capsys, tmp_path):
    change = parity_runs.config_change("train_cfg", "rcnn", "carl", "k", 0)
    fixtures = parity_runs.changed(shared_dir / "parity", tmp_path, change, case=CASE)
    run = parity_runs.run(capsys, fixtures)
    assert run.status == 1 and run.missed == ["loss loss_carl", "loss total"]


def test_the_table_is_that_of_faster_rcnn():
    assert mmdet_pisa_rcnn.table is mmdet_faster_rcnn.table
    tables.there_and_back(mmdet_pisa_rcnn.table(), "pisa_rcnn", tiny.TINY["pisa_rcnn"].fields)

"""What parity notices in SABL, and its table with group norms; test_small.py runs its case."""

import jax.numpy as jnp
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_sabl_retinanet
from detlab.ops import coders

CASE = "small/sabl_retinanet_r50_fpn_small"


@pytest.fixture
def missed(shared_dir, tmp_path, capsys):
    """`missed()`: the lines that miss, without gradients."""

    def run():
        folder = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
        return set(parity_runs.run(capsys, folder).missed)

    return run


@pytest.mark.slow
def test_offsets_without_the_second_bucket_are_noticed(missed, monkeypatch):
    real = coders.encode_buckets

    def nearest(*arguments):
        return (found := real(*arguments))._replace(offset_weights=found.labels)

    monkeypatch.setattr(coders, "encode_buckets", nearest)
    found = missed()
    assert {"loss loss_bbox_reg", "loss total"} <= found
    targets = {line for line in found if line.startswith("targets")}
    assert targets and found == targets | {"loss loss_bbox_reg", "loss total"}
    assert all(".get_targets.0.5_" in line for line in targets)


@pytest.mark.slow
def test_scores_that_are_not_rectified_are_noticed_in_detections_alone(missed, monkeypatch):
    real = coders.decode_buckets

    def sure(*arguments, **options):
        boxes, confidence = real(*arguments, **options)
        return boxes, jnp.ones_like(confidence)

    monkeypatch.setattr(coders, "decode_buckets", sure)
    found = missed()
    assert "detections scores" in found
    assert all(line.startswith("detections") for line in found)


def test_the_table_knows_group_norms():
    fields = {**tiny.TINY["sabl_retinanet"].fields, "norm": "group", "norm_groups": 4}
    table = mmdet_sabl_retinanet.table()
    _, tensors = tables.there_and_back(table, "sabl_retinanet", fields)
    assert "bbox_head.reg_convs.0.gn.weight" in tensors
    assert "bbox_head.reg_convs.0.conv.bias" not in tensors
    assert not any(name.startswith("neck") and ".gn." in name for name in tensors)

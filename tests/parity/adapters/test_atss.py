"""What parity notices in ATSS, and its table; test_small.py runs its case."""

import jax.numpy as jnp
import parity_runs
import pytest
import tables
import tiny

from detlab.assign import atss
from detlab.converters.tables import mmdet_atss

CASE = "small/atss_r50_fpn_small"


@pytest.mark.slow
def test_a_threshold_without_the_standard_deviation_is_noticed(
    shared_dir, capsys, tmp_path, monkeypatch
):
    """Without gradients, which take most of the time to compile."""

    def mean(iou, there):
        return jnp.where(there, iou, 0.0).sum() / jnp.maximum(there.sum(), 1)

    monkeypatch.setattr(atss, "threshold", mean)
    fixtures = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
    run = parity_runs.run(capsys, fixtures)
    assert run.status == 1
    losses = {f"loss loss_{name}" for name in ("cls", "bbox", "centerness")}
    assert losses | {"assignment train_assign.bbox_head.assigner.0.gt_inds"} <= set(run.missed)
    assert not any(line.startswith(("neck", "map", "detections")) for line in run.missed)


def test_the_table_knows_the_scalars_and_the_norms_of_the_towers():
    fields = tiny.TINY["atss"].fields
    _, tensors = tables.there_and_back(mmdet_atss.table(bgr=True), "atss", fields)
    assert tensors["bbox_head.scales.4.scale"].shape == ()
    assert "bbox_head.reg_convs.0.gn.weight" in tensors
    assert "bbox_head.reg_convs.0.conv.bias" not in tensors

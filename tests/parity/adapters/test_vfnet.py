"""What parity notices in VFNet, and its table; test_small.py runs its case."""

import jax.numpy as jnp
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_vfnet
from detlab.heads import reppoints
from detlab.heads import vfnet as head_lib

CASE = "small/vfnet_r50_fpn_small"


@pytest.mark.slow
def test_sampling_at_cells_instead_of_a_star_is_noticed_where_it_is_read(
    shared_dir, capsys, tmp_path, monkeypatch
):
    """The paper's idea: without it the deformable convolutions are ordinary ones."""

    def regular(distances):
        taps = reppoints.kernel_grid(3)
        return jnp.broadcast_to(taps, (*distances.shape[:-1], len(taps)))

    monkeypatch.setattr(head_lib, "star", regular)
    parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    read = {"map cls_score_0", "map bbox_pred_refine_0", "loss loss_cls", "loss loss_bbox_rf"}
    assert read | {"detections boxes"} <= set(run.missed)
    assert {"map train_bbox_pred_0", "loss loss_bbox"} < set(run.passed)
    before = ("neck", "map train_bbox_pred", "assignment", "targets")
    assert not any(line.startswith(before) for line in run.missed)


def test_the_table_knows_both_rounds():
    fields = tiny.TINY["vfnet"].fields
    _, tensors = tables.there_and_back(mmdet_vfnet.table(bgr=True), "vfnet", fields)
    assert tensors["bbox_head.vfnet_reg_conv.gn.weight"].shape == (16,)
    assert tensors["bbox_head.vfnet_cls_dconv.weight"].shape == (16, 16, 3, 3)
    for name in ("scales", "scales_refine"):
        assert tensors[f"bbox_head.{name}.4.scale"].shape == ()

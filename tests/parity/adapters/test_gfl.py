"""What parity notices in GFL, and its table; test_small.py runs its case."""

import numpy as np
import parity_runs
import pytest
import tables
import tiny

from detlab.converters import mapping
from detlab.converters.tables import mmdet_gfl

CASE = "small/gfl_r50_fpn_small"


@pytest.mark.slow
def test_training_without_the_distribution_loss_is_noticed_there_alone(
    shared_dir, capsys, tmp_path
):
    """The paper's idea: without this loss the distributions learn their means only."""
    change = parity_runs.config_change("model_cfg", "bbox_head", "loss_dfl", "loss_weight", 0.0)
    parity_runs.changed(shared_dir / "parity", tmp_path, change, CASE)
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    assert set(run.missed) == {"loss loss_dfl", "loss total"}
    assert {"loss loss_cls", "loss loss_bbox", "map bbox_pred_0"} < set(run.passed)


def test_the_table_drops_the_numbers_of_a_distribution():
    fields = tiny.TINY["gfl"].fields
    leaves, tensors = tables.there_and_back(mmdet_gfl.table(bgr=True), "gfl", fields)
    assert tensors["bbox_head.gfl_reg.weight"].shape == (68, 16, 3, 3)
    assert tensors["bbox_head.scales.4.scale"].shape == ()
    numbers = {"bbox_head.integral.project": np.arange(17.0)}
    shapes = tables.shapes("gfl", fields)
    tree, _ = mapping.convert({**tensors, **numbers}, mmdet_gfl.table(bgr=True), shapes)
    assert mapping.flatten(tree).keys() == leaves.keys()

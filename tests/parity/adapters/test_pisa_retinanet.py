"""What parity notices in RetinaNet with PISA, and its table; test_small.py runs its case."""

import jax.numpy as jnp
import parity_runs
import pytest
import tables
import tiny

from detlab.converters.tables import mmdet_pisa_retinanet, mmdet_retinanet
from detlab.losses import pisa

CASE = "small/pisa_retinanet_r50_fpn_small"


@pytest.mark.slow
def test_weights_without_a_rank_are_noticed(shared_dir, capsys, monkeypatch):
    """Only gradients show it: the weights keep the sum of the losses, whatever the ranks."""
    monkeypatch.setattr(pisa, "_ranks", lambda groups, *rest: jnp.zeros_like(groups))
    run = parity_runs.run(capsys, shared_dir / "parity", "--case", CASE)
    assert run.status == 1
    assert {f"gradient norm bbox_head.cls_convs.{i}.conv.weight" for i in range(4)} < set(
        run.missed
    )
    assert "gradient dot bbox_head.retina_cls.weight" in run.missed
    assert all(line.startswith("gradient") for line in run.missed)
    assert not any("reg_convs" in line or "retina_reg" in line for line in run.missed)


def test_the_table_is_that_of_retinanet():
    assert mmdet_pisa_retinanet.table is mmdet_retinanet.table
    tables.there_and_back(
        mmdet_pisa_retinanet.table(), "pisa_retinanet", tiny.TINY["pisa_retinanet"].fields
    )

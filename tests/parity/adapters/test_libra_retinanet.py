"""What parity notices in Libra RetinaNet, and its table; test_small.py runs its case."""

import json

import parity_runs
import pytest
import tables
import tiny

from benchmarks.parity.adapters import libra_retinanet
from detlab import errors
from detlab.converters.tables import mmdet_libra_retinanet

CASE = "small/libra_retinanet_r50_fpn_small"


@pytest.mark.slow
def test_a_pyramid_without_its_refinement_is_noticed(shared_dir, capsys, monkeypatch, tmp_path):
    """Everything else is as it was: the levels still get their plain average."""
    parity_runs.without_weights(monkeypatch, "balance")
    folder = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
    run = parity_runs.run(capsys, folder)
    assert run.status == 1
    assert {f"neck fpn_{level}" for level in range(5)} < set(run.missed)
    assert {"loss loss_cls", "loss loss_bbox", "detections scores"} < set(run.missed)
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


def test_the_balanced_pyramid_has_its_names():
    fields = tiny.TINY["libra_retinanet"].fields
    _, tensors = tables.there_and_back(mmdet_libra_retinanet.table(), "libra_retinanet", fields)
    assert tensors["neck.0.fpn_convs.4.conv.weight"].shape == (16, 16, 3, 3)
    names = {key for key in tensors if key.startswith("neck.1.")}
    assert names == {
        f"neck.1.refine.{part}.conv.{leaf}"
        for part in ("g", "theta", "phi", "conv_out")
        for leaf in ("weight", "bias")
    }


def test_another_number_of_necks_is_one_sentence(shared_dir):
    info = json.loads((shared_dir / "parity" / f"{CASE}.json").read_text())
    info["model_cfg"]["neck"].pop()
    with pytest.raises(errors.UserError, match=r"model_cfg.neck is \[.*, not a list of 2 parts"):
        libra_retinanet.fields(info)

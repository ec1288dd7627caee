"""SSD300, SSD512 and SSD300 with PISA match the reference, and parity notices what is left out."""

import json
import shutil

import parity_runs
import pytest

CASES = ("ssd300", "ssd512", "pisa_ssd300")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_shared_case_passes_in_full(name, shared_dir, capsys):
    parity_runs.in_full(capsys, shared_dir / "parity", name)


@pytest.mark.slow
def test_another_ratio_of_hard_negatives_is_noticed(shared_dir, capsys, tmp_path):
    change = parity_runs.config_change("train_cfg", "neg_pos_ratio", 2)
    parity_runs.changed(shared_dir / "parity", tmp_path, change, "ssd300")
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    assert "loss loss_cls" in run.missed
    assert all(line.startswith("loss") for line in run.missed)
    assert "loss loss_bbox" in run.passed


@pytest.mark.slow
def test_without_ranks_the_gradients_of_the_classes_miss(shared_dir, capsys, tmp_path):
    """ISR-P keeps the sum of the class losses, so only gradients show its ranks."""
    info = json.loads((shared_dir / "parity" / "pisa_ssd300.json").read_text())
    info["train_cfg"]["isr"]["k"] = 0.0  # all weights are 1
    (tmp_path / "pisa_ssd300.json").write_text(json.dumps(info))
    shutil.copy(shared_dir / "parity" / "pisa_ssd300.npz", tmp_path)
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    assert {f"gradient norm bbox_head.cls_convs.{i}.0.weight" for i in range(4)} <= set(run.missed)
    assert all(line.startswith("gradient") for line in run.missed)
    assert {"loss loss_cls", "loss loss_bbox", "loss loss_carl"} <= set(run.passed)

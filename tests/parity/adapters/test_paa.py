"""What parity notices in PAA; test_small.py runs its case."""

import parity_runs
import pytest

from detlab.assign import paa

CASE = "small/paa_r50_fpn_small"


@pytest.mark.slow
def test_positives_without_a_fitted_mixture_are_noticed(shared_dir, capsys, tmp_path, monkeypatch):
    """The mixture stays as it starts.  Without gradients, which take most of the time."""
    fit = paa.fit
    monkeypatch.setattr(paa, "fit", lambda losses, there: fit(losses, there, steps=0))
    fixtures = parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, CASE)
    run = parity_runs.run(capsys, fixtures)
    assert run.status == 1
    again = {f"targets train_targets.bbox_head.paa_reassign.{i}.0" for i in range(2)}
    assert again | {f"loss loss_{name}" for name in ("cls", "bbox", "iou")} <= set(run.missed)
    untouched = ("neck", "map", "assignment", "targets train_targets.bbox_head.get", "detections")
    assert not any(line.startswith(untouched) for line in run.missed)


@pytest.mark.slow
def test_detections_without_voting_are_noticed(shared_dir, capsys, tmp_path):
    change = parity_runs.config_change("model_cfg", "bbox_head", "score_voting", False)
    run = parity_runs.run(
        capsys, parity_runs.changed(shared_dir / "parity", tmp_path, change, CASE)
    )
    assert run.status == 1 and run.missed == ["detections boxes"]

"""What parity notices in CentripetalNet; test_small.py runs its narrow twin."""

import json

import jax
import numpy as np
import parity_runs
import pytest
import tiny

from benchmarks.parity import cases, checks, weights
from benchmarks.parity.adapters import centripetalnet as adapter
from detlab import types
from detlab.detectors import centripetalnet, cornernet

CASE = "centripetalnet_hourglass104"
SMALL = f"small/{CASE}_small"


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys):
    run = parity_runs.in_full(capsys, shared_dir / "parity", CASE)
    kinds = {line.split()[0] for line in run.passed}
    assert kinds == {"map", "targets", "loss", "gradient", "detections"}
    assert "3 recorded detections come from ties and are left out" in run.text


def test_detections_at_cells_that_are_no_peaks_are_left_out(shared_dir):
    """The bottom right corners of one image are 278 peaks and 22 other cells of score 0."""
    for name, out in ((CASE, [[], [38, 48, 51]]), (SMALL, [[], []])):
        info = json.loads((shared_dir / "parity" / f"{name}.json").read_text())
        case = cases.read(shared_dir / "parity", name, info)
        assert [np.flatnonzero(~mask).tolist() for mask in adapter.reproducible(case)] == out


OTHERS = {f"detections {what}" for what in ("count", "boxes", "scores", "labels")}
PAIRING = {
    "as the reference": ({}, 1.0, set()),
    "centres closer together": (dict(max_center_distance=0.05), 1.0, OTHERS),
    # The paper's idea: without their shifts, corners point to nothing in common.
    "without shifts": ({}, 0.0, OTHERS),
}


@pytest.mark.parametrize("how", PAIRING)
def test_recorded_maps_give_the_recorded_detections(how, shared_dir):
    """Decodes the reference's raw maps, without a network; other settings must miss."""
    changed, scale, missed = PAIRING[how]
    arrays = np.load(shared_dir / "parity" / f"{SMALL}.npz")

    def recorded(corner):
        names = ("heat", "off", "guiding_shift", "centripetal_shift")
        maps = [arrays[f"{corner}_{name}_1"].transpose(0, 2, 3, 1) for name in names]
        maps[3] = maps[3] * scale
        return centripetalnet.ShiftMaps(*((x,) for x in maps))

    module = centripetalnet.CentripetalNet(**dict(num_classes=7, max_corners=300) | changed)

    @tiny.jit
    def predict(maps):
        return module.suppress(module.candidates(maps, np.array([[96, 128]] * 2), (96, 128)))

    found = jax.device_get(predict(cornernet.Outputs((), recorded("tl"), recorded("br"))))
    mine, theirs = [], []
    for i, valid in enumerate(found.valid):
        mine.append(types.Detections(*(values[i][valid] for values in found)))
        boxes, scores, labels = (arrays[f"det_{x}_{i}"] for x in ("boxes", "scores", "labels"))
        theirs.append(types.Detections(boxes, scores, labels, np.ones(len(scores), bool)))
    lines = checks.detections(mine, theirs)
    missing = {line.quantity for line in lines if not line.passed}
    assert missing <= missed and bool(missing) == bool(missed)


@pytest.mark.slow
def test_features_that_are_not_adapted_are_noticed_where_they_are_read(
    shared_dir, capsys, tmp_path, monkeypatch
):
    """Without places, the guiding shift guides nothing: the convolution is an ordinary one."""
    real = weights.convert

    def convert(*args):
        found = real(*args)
        return found._replace(
            params=parity_runs.mapped(
                found.params, lambda path, x: np.zeros_like(x) if "/places/" in path else x
            )
        )

    monkeypatch.setattr(weights, "convert", convert)
    parity_runs.changed(shared_dir / "parity", tmp_path, lambda info: None, SMALL)
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    read = {f"map {corner}_centripetal_shift_{i}" for corner in ("tl", "br") for i in (0, 1)}
    assert read | {"loss centripetal_loss"} <= set(run.missed)
    before = ("heat", "off", "guiding")
    assert not [line for line in run.missed if any(f"_{name}" in line for name in before)]
    assert {"loss det_loss", "loss off_loss", "loss guiding_loss"} <= set(run.passed)

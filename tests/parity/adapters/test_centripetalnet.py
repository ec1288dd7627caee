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


OTHERS = {f"detections {what}" for what in ("count", "boxes", "scores", "labels")}
PAIRING = {
    "as the reference": ({}, 1.0, set()),
    "centres closer together": (dict(max_center_distance=0.05), 1.0, OTHERS),
    # The paper's idea: without their shifts, corners point to nothing in common.
    "without shifts": ({}, 0.0, OTHERS),
}


def recorded(case):
    """The recorded detections of each image."""
    found = []
    for i in range(2):
        values = (case.arrays[f"det_{x}_{i}"] for x in ("boxes", "scores", "labels"))
        found.append(types.Detections(*values, np.ones(len(case.arrays[f"det_labels_{i}"]), bool)))
    return found


@pytest.mark.parametrize("name, left_out", [(SMALL, [0, 0]), (CASE, [0, 3])])
@pytest.mark.parametrize("how", PAIRING)
def test_recorded_maps_give_the_recorded_detections(how, name, left_out, shared_dir):
    """Decodes the reference's raw maps, without a network; other settings must miss.

    In one image, bottom right corners are 278 peaks and 22 other cells of score 0.
    """
    changed, scale, missed = PAIRING[how]
    info = json.loads((shared_dir / "parity" / f"{name}.json").read_text())
    case = cases.read(shared_dir / "parity", name, info)
    canvas = case.arrays["image"].shape[2:]

    def maps_of(corner):
        names = ("heat", "off", "guiding_shift", "centripetal_shift")
        maps = [case.arrays[f"{corner}_{name}_1"].transpose(0, 2, 3, 1) for name in names]
        maps[3] = maps[3] * scale
        return centripetalnet.ShiftMaps(*((x,) for x in maps))

    fields = dict(num_classes=info["num_classes"], max_corners=300) | changed
    module = centripetalnet.CentripetalNet(**fields)

    @tiny.jit
    def predict(maps):
        return module.suppress(module.candidates(maps, np.array([canvas] * 2), canvas))

    found = jax.device_get(predict(cornernet.Outputs((), maps_of("tl"), maps_of("br"))))
    mine = [types.Detections(*(x[i][found.valid[i]] for x in found)) for i in range(2)]
    whole = recorded(case)
    theirs = adapter.reproducible(case, whole)
    assert [len(a.scores) - len(b.scores) for a, b in zip(whole, theirs)] == left_out
    missing = {line.quantity for line in checks.detections(mine, theirs) if not line.passed}
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

"""CornerNet matches the reference: maps of both stacks, targets, losses, gradients, pairs."""

import jax
import numpy as np
import parity_runs
import pytest
import tiny

from benchmarks.parity import checks
from detlab import types
from detlab.detectors import cornernet

CASE = "cornernet_hourglass104"


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys):
    run = parity_runs.in_full(capsys, shared_dir / "parity", CASE)
    kinds = {line.split()[0] for line in run.passed}
    assert kinds == {"map", "targets", "loss", "gradient", "detections"}
    for measure in ("norm", "dot"):  # of the 588 tensors that the reference trains
        assert sum(line.startswith(f"gradient {measure}") for line in run.passed) == 588


OTHERS = {f"detections {what}" for what in ("boxes", "scores", "labels")}
PAIRING = {
    "as the reference": ({}, set()),
    "fewer corners": (dict(max_corners=200), OTHERS),
    # Tags of the case are at most 0.28 apart, so its threshold of 0.5 accepts all pairs.
    "more like tags": (dict(max_tag_distance=0.2), OTHERS),
}


@pytest.mark.parametrize("how", PAIRING)
def test_recorded_maps_give_the_recorded_detections(how, shared_dir):
    """Decodes the reference's raw maps, without a network; other settings must miss."""
    changed, missed = PAIRING[how]
    arrays = np.load(shared_dir / "parity" / f"{CASE}.npz")

    def recorded(corner):
        names = (f"{corner}_{kind}_1" for kind in ("heat", "off", "emb"))
        return cornernet.CornerMaps(*((arrays[name].transpose(0, 2, 3, 1),) for name in names))

    module = cornernet.CornerNet(**dict(num_classes=5, max_corners=300) | changed)

    @tiny.jit
    def predict(maps):
        return module.suppress(module.candidates(maps, np.full((2, 2), 128), (128, 128)))

    found = jax.device_get(predict(cornernet.Outputs((), recorded("tl"), recorded("br"))))
    mine, theirs = [], []
    for i, valid in enumerate(found.valid):
        mine.append(types.Detections(*(values[i][valid] for values in found)))
        boxes, scores, labels = (arrays[f"det_{x}_{i}"] for x in ("boxes", "scores", "labels"))
        theirs.append(types.Detections(boxes, scores, labels, np.ones(len(scores), bool)))
    lines = checks.detections(mine, theirs)
    assert {line.quantity for line in lines if not line.passed} == missed

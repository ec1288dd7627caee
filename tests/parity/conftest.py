"""Folders of cases, and how far a case's gradients move by themselves."""

import jax
import numpy as np
import pytest

from benchmarks import parity
from converters import mapping


@pytest.fixture(scope="session")
def compact(repository):
    """The case that lies in this repository, cut from the shared one."""
    return repository / "tests" / "data" / "parity"


@pytest.fixture
def nudged(monkeypatch):
    """Runs of the parity command here fill this with tensors, gradients as run, and `nudged`: the
    gradients of inputs that differ by one part in a million, three times."""
    found = {}

    def run(case, detector, converted):
        compute = parity.program(detector, with_gradients=True)
        batch = case.batch()

        def results(seed):
            noise = np.random.default_rng(seed).standard_normal(batch.images.shape)
            images = batch.images * (1 + 1e-6 * noise if seed else 1)
            batch_of_seed = batch._replace(images=images.astype(np.float32))
            return jax.device_get(compute(converted.params, converted.state, batch_of_seed))

        whole, *others = (results(seed) for seed in range(4))
        found["tensors"] = converted.tensors
        found["gradients"], *found["nudged"] = (
            mapping.reverse({"params": r.gradients}, converted.table) for r in (whole, *others)
        )
        return whole

    monkeypatch.setattr(parity, "run", run)
    return found

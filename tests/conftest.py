"""Fixtures that every test folder uses: the recorded reference numbers and the compilation cache."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of recorded reference numbers and small data sets, beside the checkout."""
    if not SHARED.is_dir():
        message = (
            "the folder `shared` with reference numbers and small data sets is not beside the checkout"
        )
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def unit_cases(shared_dir):
    """`unit_cases(group)` -> {name: (description, arrays)} of parity/units."""

    def load(group):
        folder = shared_dir / "parity" / "units"
        cases = json.loads((folder / f"{group}.json").read_text())["cases"]
        found = {}
        for case in cases:
            with np.load(folder / f"{case['name']}.npz") as arrays:
                found[case["name"]] = (case, dict(arrays))
        return found

    return load


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests compile are compiled once a run."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield

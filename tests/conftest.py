"""What every test folder uses: the recorded reference numbers and the compilation cache."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# Programs are compiled once, also where several tests or their subprocesses use them.  jax reads
# this when it is imported, which no line above does.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of recorded reference numbers and small data sets, beside the checkout."""
    if not SHARED.is_dir():
        message = "the folder `shared` (reference numbers, small data) is not beside the checkout"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def run_on_devices():
    """`run_on_devices(count, program, *arguments)` on virtual CPU devices -> its output.

    A process of its own, as their number is fixed at the start; a failure shows its errors.  With
    `quick` its programs are compiled in a third of the time and run slower.
    """

    def run(count, program, *arguments, quick=False):
        flags = f"--xla_force_host_platform_device_count={count}"
        if quick:
            flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        result = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags,
                "PYTHONPATH": str(REPOSITORY / "tests" / "support"),
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,  # so that the assertion shows the output
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


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

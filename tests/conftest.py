"""Shared by all test folders: recorded reference numbers, the compilation cache, fixtures."""

import fcntl
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# Programs are compiled quickly rather than well, because a test runs each only a few times: those
# of a small training in a tenth of the time.  XLA_FLAGS="" in the environment compiles as for
# users.  jax 0.12 has no second way to emit fusions and ignores the last option.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ.setdefault("XLA_FLAGS", QUICK)

# Programs are compiled once, even if several tests or their subprocesses use them.  jax reads these
# variables on import, so they are set before any import of jax.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A shell ignores Ctrl-C for what it starts in the background, and programs would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of recorded reference numbers and small data sets beside the checkout."""
    if not SHARED.is_dir():
        _absent("the folder `shared` (reference numbers, small data) is not beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def case(shared_dir):
    """`case(name)` -> the folder of a recorded input of a user, in `shared/cases`."""

    def find(name):
        folder = shared_dir / "cases" / name
        if not folder.is_dir():
            _absent(f"the folder `shared` has no `cases/{name}`")
        return folder

    return find


def _absent(message):
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)` -> the folder that `make(folder)` fills, once per session.

    With several workers, the first that asks makes it and the others wait.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # shared by the workers, each of which has its own folder in it

    def made_once(name, make):
        folder, done = root / f"once_{name}", root / f"once_{name}.done"
        with (root / f"once_{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # left by a `make` that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def run_on_devices():
    """`run_on_devices(count, program, *arguments)` -> its output, on virtual CPU devices.

    Runs in a new process, because the number of devices is fixed at its start; a failure shows its
    errors.
    """

    def run(count, program, *arguments, timeout=600):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
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
            timeout=timeout,
            check=False,  # the assertion below shows the output
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="session")
def unit_cases(shared_dir):
    """`unit_cases(group)` -> {name: (description, read-only arrays)} of parity/units."""

    @functools.cache
    def load(group):
        folder = shared_dir / "parity" / "units"
        cases = json.loads((folder / f"{group}.json").read_text())["cases"]
        found = {}
        for case in cases:
            with np.load(folder / f"{case['name']}.npz") as file:
                arrays = dict(file)
            for array in arrays.values():
                array.flags.writeable = False  # shared by many tests
            found[case["name"]] = (case, arrays)
        return found

    return load

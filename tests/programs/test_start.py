"""Programs start fast: slow modules are imported where they are used."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MAIN = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
PROGRAMS = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__main__")
    for folder in ("detlab", "converters", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
    if MAIN.search(path.read_text()) and path != REPOSITORY / "detlab" / "__main__.py"
)
# ops needs jax for the choices of a flag; benchmarks.models and benchmarks.loader start peers.
WITH_JAX = ("benchmarks.ops", "benchmarks.peers", "benchmarks.loader_peers")
SLOW = ("tensorflow_datasets", "tensorflow", "matplotlib", "orbax", "grain", "pycocotools", "torch")

# One process runs all: first --help of each program, before anything imports jax.
SCRIPT = """
import contextlib, importlib, io, json, runpy, sys

programs, with_jax = json.loads(sys.argv[1])
helps = {}
for program in programs:
    if program in with_jax:
        continue
    sys.argv = [program, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    helps[program] = text.getvalue(), "jax" in sys.modules
for program in programs:
    module = importlib.import_module(program)
    if hasattr(module, "__path__"):
        importlib.import_module(f"{program}.__main__")
print(json.dumps([helps, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture(scope="module")
def started():
    """({program: (help text, whether jax is imported after it)}, names of all imported modules)."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([PROGRAMS, WITH_JAX])],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_is_printed_without_importing_jax(started):
    helps, _ = started
    assert {"detlab.train", "detlab.eval", "detlab.demo", "converters.convert"} < set(helps)
    for program, (text, with_jax) in helps.items():
        assert text.startswith(f"usage: python -m {program} ")
        assert not with_jax, f"{program} imports jax before it answers --help"


def test_importing_the_programs_imports_nothing_that_is_slow(started):
    _, modules = started
    assert "jax" in modules
    assert not set(SLOW) & set(modules)

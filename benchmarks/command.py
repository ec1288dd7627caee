"""Helpers of the benchmarks' command lines: choose names, run programs, write files."""

import difflib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks import turns
from detlab import errors

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Compiler options for programs that run only a few times: they compile in a tenth of the time and
# run slower.  They compute sums in another order, so results are rounded differently.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):
    # Later compilers no longer have this way of compiling fused loops.
    QUICK["xla_cpu_use_fusion_emitters"] = False


def choose(wanted: Sequence[str], known: Collection[str], kind: str, flag: str = "--only"):
    """The wanted names, or all known names if none is given.

    Raises:
      UserError: a name is unknown.
    """
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}."
            raise errors.UserError(f"{flag} {name}: no such {kind}; {hint}")
    return list(wanted or known)


def run_module(module: str, *arguments: str, folder: pathlib.Path | None = None) -> None:
    """Runs `python -m MODULE ARGUMENTS`, silently, in a folder (default: the current one).

    Raises:
      UserError: it failed; the message is its own error.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": _python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = last_error(done.stderr)
        why = said.removeprefix("error: ") or f"it failed:\n{done.stderr[-3000:]}"
        raise errors.UserError(f"python -m {module}: {why}")


def _python_path():
    """The checkout first, so that its modules are found from any folder."""
    return os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))


def last_error(output: str) -> str:
    """The last line `error: ...` of a program's output; "" if there is none."""
    return next((x for x in reversed(output.splitlines()) if x.startswith("error: ")), "")


def start_peer(python: str, module: str, task: NamedTuple, install: str) -> turns.Worker | dict:
    """The process of a peer under another Python, or {"absent": why}.

    Raises:
      UserError: the Python cannot be run.
    """
    try:
        return turns.Worker([python, "-m", module, json.dumps(task._asdict())])
    except turns.Failed as error:
        return {"absent": f"{error} (pip install {install})"[:200]}
    except OSError as error:
        raise errors.UserError(f"--peer_python {python} cannot be run: {error.strerror}.") from None


def make_folder(folder: pathlib.Path) -> None:
    """Creates the folder of results; called before any work starts.

    Raises:
      UserError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"{folder} cannot be created as a folder: {error.strerror}."
        ) from None


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file.

    Raises:
      UserError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise errors.UserError(f"{path} is not JSON: {error}; restore it.") from error


def rows_of(path: pathlib.Path | None, key: str = "rows") -> dict[str, Any]:
    """The rows that a file of results already has at `key`, to add others; {} without a file.

    Raises:
      UserError: the file has no rows.
    """
    if path is None or not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get(key), dict):
        raise errors.UserError(f"--output {path} has no rows of this benchmark; name another file.")
    return found[key]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *rest])


def detector_files(tree: pathlib.Path = REPOSITORY) -> dict[str, pathlib.Path]:
    """Name -> file of each detector in a checkout.

    Raises:
      UserError: the checkout has no detector files.
    """
    folder = tree / "detlab" / "detectors"
    files = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    if not files:
        raise errors.UserError(f"{folder} has no detector files; give --tree a checkout.")
    return files

"""Runs the checks that only a release needs, unattended, and resumes where it stopped.

    python -m benchmarks.release --list
    python -m benchmarks.release
    python -m benchmarks.release --only parity --only overfit/fcos

Each of the four steps has a row for each of its checks; a row is named STEP/NAME:

    parity   every case of the shared folder, compiled at full optimisation -> release_parity.json
    kills    24 kills of a training run, by benchmarks.kills -> kills_cpu.json
    overfit  overfitting eight images, by benchmarks.overfit -> overfit_NAME_cpu.json
    models   compile time, speed and memory, by benchmarks.models -> models_cpu.json

A row runs in its own process, on CPUs, and is written as soon as it ends.  The next start skips
rows that passed with the installed version of jax; `--again` runs them anyway.  A failed row is
recorded and reported, and the other rows still run.  If an error ends a row without a result, its
outdated older result is removed.  Cases that need something detlab lacks are recorded as missing,
with the reason.  Exit status 1 if a row failed.

`tests/programs/test_release.py` reports rows that are missing or failed in the committed results.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.release(__doc__))  # --help needs no import below

from benchmarks import command, models, overfit
from benchmarks.parity import cases as cases_lib
from benchmarks.parity import references
from detlab import errors, files

KILLS = flags.KILLS
KILLED = "retinanet_shapes"  # the experiment that is killed


class Settings(NamedTuple):
    """Settings from the command line."""

    fixtures: pathlib.Path
    output: pathlib.Path
    kills: int = KILLS
    peer_python: str = sys.executable


class Row(NamedTuple):
    """The result of one row."""

    status: str  # passed, failed or missing
    note: str = ""  # a figure, or why the row failed or is missing
    jax: str = ""  # version that it ran with


class Step(NamedTuple):
    """A group of rows of one kind."""

    kind: str  # what a row is called in messages
    names: Callable[[Settings], Sequence[str]]
    found: Callable[[Settings], Mapping[str, Row]]  # rows in the results
    run: Callable[[Settings, str], None]  # runs a row and writes its result, or removes it


class Ended(NamedTuple):
    """A process that has ended."""

    why: str  # the reason in one line, for a row without figures
    seconds: float


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args = flags.release(__doc__).parse_args(arguments)
    if args.kills < KILLS:
        raise errors.UserError(f"--kills is {args.kills}; a release needs at least {KILLS}.")
    settings = Settings(args.fixtures, args.output, args.kills, args.peer_python)
    wanted = choose(args.only or args.again or list(STEPS), settings, "--only")
    again = set(choose(args.again, settings, "--again"))
    wanted = list(dict.fromkeys([*wanted, *again]))
    command.make_folder(settings.output)

    there = {step: results(settings, step) for step in dict(wanted)}
    reasons = {}
    for step, name in wanted:
        reason = why_run(settings, step, name, there[step].get(name))
        reasons[step, name] = "asked for again" if (step, name) in again else reason
    to_run = [row for row, reason in reasons.items() if reason]
    if args.list:
        for (step, name), reason in reasons.items():
            text = f"run      {step}/{name}: {reason}"
            print(text if reason else f"{there[step][name].status:8} {step}/{name}")
        print(f"{len(wanted)} rows, {len(to_run)} to run")
        return

    for number, (step, name) in enumerate(to_run, start=1):
        began = time.perf_counter()
        print(f"{time.strftime('%H:%M:%S')}  [{number}/{len(to_run)}] {step}/{name}", flush=True)
        STEPS[step].run(settings, name)
        row = results(settings, step).get(name, Row("failed", "no result"))
        note = f": {row.note}" if row.note else ""
        print(f"          {row.status}{note} ({time.perf_counter() - began:.0f} s)", flush=True)
    lines = []
    for step in there:
        lines += wanting(settings, step, [name for of, name in wanted if of == step])
    print(f"{len(wanted)} rows, {len(to_run)} run now, {len(lines)} missing or failed")
    print(*lines, sep="\n", end="\n" if lines else "")
    if lines:
        sys.exit(1)


def choose(words: Sequence[str], settings: Settings, flag: str) -> list[tuple[str, str]]:
    """(step, name) of every row that the words name, each STEP or STEP/NAME.

    Raises:
      UserError: no such step or name.
    """
    chosen = []
    for word in words:
        step, slash, name = word.partition("/")
        command.choose([step], STEPS, "step", flag)
        names = STEPS[step].names(settings)
        if slash:
            known = [f"{step}/{known}" for known in names]
            command.choose([word], known, STEPS[step].kind, flag)
            names = [name]
        chosen += [(step, name) for name in names]
    return list(dict.fromkeys(chosen))


def results(settings: Settings, step: str) -> Mapping[str, Row]:
    """The rows of a step in the results.

    Raises:
      UserError: a file of results is damaged.
    """
    try:
        return STEPS[step].found(settings)
    except (AttributeError, KeyError, TypeError) as error:
        raise errors.UserError(
            f"the results of {step} in {settings.output} are not in this command's form"
            f" ({type(error).__name__}: {error}); restore them, or delete them to run them again."
        ) from error


def why_run(settings: Settings, step: str, name: str, row: Row | None) -> str:
    """Why a row must run; "" if it passed with the installed jax, or still has no model."""
    if row is None:
        return "no result"
    if row.status == "missing" and not can_run(settings, step, name):
        return ""
    if row.status != "passed":
        return f"{row.status}: {row.note}"
    installed = jax_version()
    return "" if row.jax == installed else f"passed with jax {row.jax}, not {installed}"


def wanting(settings: Settings, step: str, names: Sequence[str] | None = None) -> list[str]:
    """A line for each row of a step that is missing or failed in the results."""
    rows, lines = results(settings, step), []
    for name in STEPS[step].names(settings) if names is None else names:
        row = rows.get(name)
        if row is None:
            lines.append(f"{step}/{name} has no result: benchmarks.release --only {step}/{name}")
            continue
        if row.status == "failed":
            lines.append(f"{step}/{name} failed: {row.note}")
        elif row.status == "missing" and can_run(settings, step, name):
            lines.append(f"{step}/{name} has a model now: benchmarks.release --only {step}/{name}")
    return lines


def start(module: str, *arguments: str) -> Ended:
    """Runs `python -m MODULE ARGUMENTS` on CPUs, silently; an interrupt ends all its processes."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            start_new_session=True,  # so that its children can be killed too
        )
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error: ")] or lines or [""]
    last = said[-1].removeprefix("error: ")[:500]
    text = last if status == 2 else f"{module} ended with status {status}: {last}"
    return Ended(text, time.perf_counter() - began)


def read(path: pathlib.Path, *keys: str) -> Any:
    """The content of a file of results, which must have these keys; None if there is no file.

    Raises:
      UserError: it cannot be read, is not JSON, or lacks a key.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        text = f"{path} is not JSON ({error}); restore it, or delete it to run its rows again."
        raise errors.UserError(text) from error
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise errors.UserError(
            f"{path} has no {', '.join(absent)}; restore it, or delete it to run its rows again."
        )
    return content


def write(path: pathlib.Path, result: Any) -> None:
    """Writes a file of results whole or not at all: this command may be killed at any time."""
    files.write_json(path, result)


def jax_version() -> str:
    return importlib.metadata.version("jax")


# Parity


@functools.cache
def find_cases(folder: pathlib.Path) -> dict[str, dict]:
    """`cases.find` of parity, cached because the files are large."""
    return cases_lib.find(folder)


def can_run(settings: Settings, step: str, name: str) -> bool:
    """Whether a row can run: false only for cases that need something detlab lacks."""
    return step != "parity" or not lacks(settings, name)


def lacks(settings: Settings, name: str) -> str:
    """What a case needs and detlab lacks; "" if the case can run."""
    return references.lacks(settings.fixtures, name, find_cases(settings.fixtures)[name])


def _parity_file(settings: Settings) -> pathlib.Path:
    return settings.output / "release_parity.json"


def _parity_found(settings: Settings) -> dict[str, Row]:
    content = read(_parity_file(settings), "cases") or {"cases": {}}
    found = {}
    for name, row in content["cases"].items():
        missed = [f"{name} {error}" for name, error in row.get("missed", {}).items()]
        note = row.get("reason") or f"{row['quantities']} quantities"
        if missed:
            note += f", {len(missed)} missed: {'; '.join(missed[:3])}"
        found[name] = Row(row["status"], note, row["jax"])
    return found


def _parity_run(settings: Settings, name: str) -> None:
    if lacking := lacks(settings, name):
        row = {"status": "missing", "reason": lacking}
    else:
        row = _parity_row(settings, name)
    path = _parity_file(settings)
    # Read again: another run of this command may have written rows meanwhile.
    cases = (read(path, "cases") or {"cases": {}})["cases"] | {name: row | {"jax": jax_version()}}
    write(path, {"cases": dict(sorted(cases.items()))})


def _parity_row(settings: Settings, name: str) -> dict:
    with tempfile.TemporaryDirectory(prefix="release") as folder:
        output = pathlib.Path(folder) / "case.json"
        words = ["--fixtures", str(settings.fixtures), "--case", name, "--json", str(output)]
        ended = start("benchmarks.parity", *words)
        content = read(output, "cases")
    seconds = {"seconds": round(ended.seconds, 1)}
    if content is None:
        return {"status": "failed", "reason": ended.why} | seconds
    (found,) = content["cases"]
    missed = {
        x["quantity"]: "not finite"
        if x["error"] is None
        else f"{x['error']:.1e} > {x['tolerance']:.1e}"
        for x in found["lines"]
        if x["quantity"] in found["missed"]
    }
    return {
        "status": found["status"],
        "quantities": len(found["lines"]),
        "missed": missed,
        **seconds,
    }


# Kills


def _kills_file(settings: Settings) -> pathlib.Path:
    return settings.output / "kills_cpu.json"


def _kills_found(settings: Settings) -> dict[str, Row]:
    result = read(_kills_file(settings), "machine", "config", "kills", "violations")
    if result is None:
        return {}
    number, violations = len(result["kills"]), result["violations"]
    if violations:
        row = Row("failed", "; ".join(violations), result["machine"]["jax"])
    elif number < settings.kills:
        row = Row("failed", f"{number} kills of {settings.kills}", result["machine"]["jax"])
    else:
        row = Row("passed", f"{number} kills", result["machine"]["jax"])
    return {result["config"]: row}


def _kills_run(settings: Settings, name: str) -> None:
    words = ["--config", name, "--kills", str(settings.kills), "--seed", "0"]
    _run_into("benchmarks.kills", words, "--json", "kills.json", _kills_file(settings))


# Overfit


def _overfit_file(settings: Settings, name: str) -> pathlib.Path:
    return settings.output / f"overfit_{name}_cpu.json"


def _overfit_found(settings: Settings) -> dict[str, Row]:
    found = {}
    for name in overfit.OVERFIT:
        result = read(_overfit_file(settings, name), "machine", "AP50")
        if result is not None:
            status = "passed" if result["AP50"] >= overfit.WANTED else "failed"
            note = f"AP50 {result['AP50']:.3f}, {overfit.WANTED} is required"
            found[name] = Row(status, note, result["machine"]["jax"])
    return found


def _overfit_run(settings: Settings, name: str) -> None:
    file = _overfit_file(settings, name)
    _run_into("benchmarks.overfit", ["--only", name], "--output", file.name, file)


def _run_into(module: str, words: list[str], flag: str, name: str, target: pathlib.Path) -> None:
    """Runs a module that writes the file `name`, and puts the result at `target`.

    `flag` takes that file if it is --json, else the file's folder.
    """
    with tempfile.TemporaryDirectory(prefix="release") as folder:
        made = pathlib.Path(folder) / name
        ended = start(module, *words, flag, str(made if flag == "--json" else folder))
        result = read(made)
    if result is None:
        target.unlink(missing_ok=True)
        print(f"          {ended.why}")
    else:
        write(target, result)


# Models


def _models_file(settings: Settings) -> pathlib.Path:
    return settings.output / "models_cpu.json"


def _models_found(settings: Settings) -> dict[str, Row]:
    content = read(_models_file(settings), "machine", "models")
    if content is None:
        return {}
    return {
        name: Row("passed", "", row.get("machine", content["machine"])["jax"])
        for name, row in content["models"].items()
    }


def _models_run(settings: Settings, name: str) -> None:
    """A row measured on another machine than the first rows records that machine."""
    with tempfile.TemporaryDirectory(prefix="release") as folder:
        output = pathlib.Path(folder) / "models.json"
        words = ["--only", name, "--peer_python", settings.peer_python, "--output", str(output)]
        ended = start("benchmarks.models", *words)
        made = read(output, "machine", "models")
    path = _models_file(settings)
    content = read(path, "machine", "models")
    if made is None:
        print(f"          {ended.why}")
        if content is None:
            return
        content["models"].pop(name, None)
    else:
        content = content or {**made, "models": {}}
        row = made["models"][name]
        if made["machine"] != content["machine"]:
            row["machine"] = made["machine"]
        content["models"][name] = row
    write(path, content)


STEPS = {
    "parity": Step(
        "case", lambda settings: list(find_cases(settings.fixtures)), _parity_found, _parity_run
    ),
    "kills": Step("experiment", lambda _: [KILLED], _kills_found, _kills_run),
    "overfit": Step("detector", lambda _: list(overfit.OVERFIT), _overfit_found, _overfit_run),
    "models": Step("model", lambda _: list(models.MODELS), _models_found, _models_run),
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as with Ctrl-C
    errors.run_main(main)

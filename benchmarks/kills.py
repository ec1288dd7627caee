"""Kills a training run repeatedly and compares its results with those of an uninterrupted run.

    python -m benchmarks.kills --kills 24 --seed 0 --json kills.json

Each start of `python -m detlab.train` gets SIGKILL at a random time; every third one gets it while
a temporary checkpoint folder exists.  After each kill, every complete checkpoint must still exist,
unless newer ones replaced it, and must equal that of the uninterrupted run bit for bit.  At the
end, parameters, optimizer, average, state, figures, predictions and log rows must equal those of
the uninterrupted run.  Exit status 1 if anything differs.

The run is a small RetinaNet on shapes with averaged weights; `--config` and `--config.*` change it.
"""

import itertools
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.kills(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import machine
from detlab import errors, files
from detlab.run import checkpoint
from detlab.run import log as log_lib

SMALL = {
    "model.backbone_width": "32",
    "model.backbone_stages": "(1,1,1,1)",
    "model.neck_width": "32",
    "model.head_width": "32",
    "model.head_convs": "1",
    "data.canvases": "((64,64),)",
    "train.batch_size": "4",
    "train.steps": "24",
    "train.log_every": "1",
    "train.eval_every": "8",
    "train.checkpoint_every": "2",
    "optim.lr_batch_size": "4",
    "optim.warmup_steps": "2",
    "optim.ema_decay": "0.9",
    "eval.batch_size": "50",
    "eval.pictures": "0",
}
KEPT = {"checkpoints": 2, "best": 1}  # newest complete steps, which must survive a kill


class Kill(NamedTuple):
    """One line of the table."""

    seconds: float  # since the start of the process
    phase: str
    temporary: bool  # whether a temporary checkpoint folder existed
    complete: int | None  # last complete step after the kill
    resumed: int | None  # step at which the next start resumed


def main(arguments) -> None:
    args, overrides = cli.parse(arguments, flags.kills(__doc__))
    with tempfile.TemporaryDirectory(prefix="kills") as folder:
        runs = Runs(pathlib.Path(folder), args.config, {**SMALL, **overrides})
        kills, finished, violations = torture(runs, args.kills, random.Random(args.seed))
    print(table(kills))
    temporary = sum(kill.temporary for kill in kills)
    print(
        f"{len(kills)} kills, {temporary} of them while a temporary checkpoint folder existed;"
        f" {finished} runs finished"
    )
    for violation in violations:
        print(f"violation: {violation}")
    if not violations:
        print("no checkpoint was lost, every start resumed, every finished run was bit-equal")
    if args.json:
        result = {
            "machine": machine.describe(),
            "config": args.config,
            "overrides": {**SMALL, **overrides},
            "seed": args.seed,
            "kills": [kill._asdict() for kill in kills],
            "finished_runs": finished,
            "violations": violations,
        }
        files.write_json(args.json, result)
    if violations:
        sys.exit(1)


class Runs:
    """Starts `detlab.train` in subfolders of one folder; all starts share compiled programs."""

    def __init__(self, folder: pathlib.Path, config: str, overrides: dict[str, str]):
        self.folder = folder
        self._command = [sys.executable, "-m", "detlab.train", "--config", config]
        self._command += [f"--config.{key}={value}" for key, value in overrides.items()]
        self._environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **os.environ,
            "PYTHONUNBUFFERED": "1",  # a killed process loses its buffered output
        }

    def start(self, workdir: pathlib.Path, *more: str) -> tuple[subprocess.Popen, pathlib.Path]:
        """Starts training; returns (process, file of its output)."""
        output = self.folder / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*self._command, "--workdir", str(workdir), *more],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        return process, output


def torture(runs: Runs, number: int, rng: random.Random) -> tuple[list[Kill], int, list[str]]:
    """Kills runs; returns (kills, number of finished runs, violations)."""
    whole = runs.folder / "whole"
    runs.start(whole, "--dry_run")[0].wait()  # compiles
    began = time.time()
    process, output = runs.start(whole, "--config.train.keep_last=1000")  # keeps every step
    if process.wait() != 0:
        raise errors.UserError(f"the uninterrupted run failed: {output.read_text()[-1000:]}")
    duration = time.time() - began
    print(f"an uninterrupted run takes {duration:.1f} s")

    kills, violations, finished = [], [], 0
    workdirs = (runs.folder / f"run{i}" for i in itertools.count())
    workdir = next(workdirs)
    unresumed = 0  # kills since a start last reported where it resumes
    while True:
        enough = len(kills) >= number and 3 * sum(kill.temporary for kill in kills) >= number
        in_writing = len(kills) % 3 == 1 or len(kills) >= number
        seen = complete_steps(workdir)
        process, output = runs.start(workdir)
        start = time.time()
        if enough:
            process.wait()
        elif in_writing:
            wait_for_temporary(process, workdir, rng.randint(1, 4), rng.uniform(0, 0.03), seen)
        else:
            wait(process, rng.uniform(0.0, 0.6 * duration), workdir, seen)
        process.kill()  # does nothing if it has ended
        ended = process.wait() != -9
        seconds, text = time.time() - start, output.read_text()

        resumed = resumed_step(text)
        if resumed is not None:
            for i in range(len(kills) - unresumed, len(kills)):
                kills[i] = kills[i]._replace(resumed=resumed)
                if resumed != (kills[i].complete or 0):
                    violations.append(
                        f"kill {i + 1}: step {kills[i].complete} was complete, {resumed=}"
                    )
            unresumed = 0
        if ended:
            if process.returncode != 0:
                violations.append(f"a start failed after kill {len(kills)}: {text[-500:]}")
                break
            for i in range(len(kills) - unresumed, len(kills)):  # the run had finished before
                kills[i] = kills[i]._replace(resumed=kills[i].complete)
            unresumed = 0
            violations += [f"{workdir.name}: {text}" for text in different_runs(whole, workdir)]
            finished += 1
            if enough:
                break
            workdir = next(workdirs)
            continue
        violations += [
            f"kill {len(kills) + 1}: {text}" for text in lost_checkpoints(whole, workdir, seen)
        ]
        temporary = temporary_folders(workdir)
        kills.append(
            Kill(
                round(seconds, 2),
                phase(text, workdir, temporary),
                bool(temporary),
                checkpoint.latest_step(workdir),
                None,
            )
        )
        print(f"kill {len(kills)} after {seconds:.2f} s: {kills[-1].phase}", flush=True)
        unresumed += 1
    return kills, finished, violations


def temporary_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    return [p for name in KEPT for p in sorted((workdir / name).glob("*tmp*"))]


def complete_steps(workdir: pathlib.Path) -> dict[str, set[int]]:
    """{kind of checkpoint: its complete steps}, judged by the names of their folders."""
    return {
        name: {int(p.name) for p in (workdir / name).glob("*") if p.name.isdigit()} for name in KEPT
    }


def watch(process: subprocess.Popen, workdir: pathlib.Path, seen) -> Iterator[None]:
    """Adds complete steps to `seen` every millisecond while the process lives."""
    while process.poll() is None:
        for name, steps in complete_steps(workdir).items():
            seen[name] |= steps
        yield
        time.sleep(0.001)


def wait(process: subprocess.Popen, seconds: float, workdir: pathlib.Path, seen) -> None:
    until = time.time() + seconds
    for _ in watch(process, workdir, seen):
        if time.time() >= until:
            return


def wait_for_temporary(process, workdir: pathlib.Path, nth: int, delay: float, seen) -> None:
    """Waits until `delay` seconds after the nth new temporary folder came, while one exists."""
    known, until = set(temporary_folders(workdir)), math.inf
    for _ in watch(process, workdir, seen):
        there = set(temporary_folders(workdir))
        nth -= len(there - known)
        known |= there
        if nth <= 0:
            until = min(until, time.time() + delay)
            if there and time.time() >= until:
                return


def resumed_step(output: str) -> int | None:
    """The step at which a start resumed; 0 if it began anew, None if it did not get that far."""
    if found := re.search(r"^resuming .* at step (\d+) of", output, re.MULTILINE):
        return int(found[1])
    return 0 if "initialised in" in output else None


def phase(output: str, workdir: pathlib.Path, temporary: list[pathlib.Path]) -> str:
    """What the process was doing, judged by its output and its files."""
    if temporary:
        names = [f"{p.parent.name}/{p.name.partition('.')[0]}" for p in temporary]
        doing = f"writing {' and '.join(names)}"
        if not re.search("^data:", output, re.MULTILINE):
            return f"starting (the previous kill came while {doing})"
        return doing
    if not re.search("^data:", output, re.MULTILINE):
        return "starting"
    resumed = resumed_step(output)
    if resumed is None:
        return "building the detector"
    rows = log_lib.read_rows(workdir / "metrics.jsonl")
    trained = max((row["step"] for row in rows if "train/loss" in row), default=0)
    evaluated = {row["step"] for row in rows if "eval/AP" in row}
    config = json.loads((workdir / "config.json").read_text())["train"]
    if trained == config["steps"] and trained in evaluated:
        return "writing the results"
    if trained and trained % config["eval_every"] == 0 and trained not in evaluated:
        return f"evaluating step {trained}"
    if "compiled the train step" not in output:
        return "compiling the train step"
    return f"training step {trained + 1}"


def lost_checkpoints(whole: pathlib.Path, workdir: pathlib.Path, seen) -> list[str]:
    """Messages on complete checkpoints that no newer ones replaced and that are gone or differ."""
    found = []
    there = complete_steps(workdir)
    for name, kept in KEPT.items():
        for step in sorted(seen[name] | there[name])[-kept:]:
            if step not in there[name]:
                found.append(f"{name}/{step} was complete and is gone")
            else:
                found += different_steps(whole, workdir, name, step)
    return found


def different_steps(whole, workdir, name: str, step: int) -> list[str]:
    """Messages on items of a step that differ from the uninterrupted run in any bit."""
    here, there = workdir / name / str(step), whole / "checkpoints" / str(step)
    found = []
    for item in ("weights", "training"):
        try:
            pair = [checkpoint.read_arrays(folder / item) for folder in (here, there)]
        except Exception as error:  # of many types in orbax and tensorstore; each is a loss
            found.append(f"{name}/{step}/{item} cannot be read ({error})")
        else:
            if not bit_equal(*pair):
                found.append(f"{name}/{step}/{item} differs from the uninterrupted run")
    return found


def bit_equal(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in ((np.asarray(x), np.asarray(y)) for x, y in pairs)
    )


def different_runs(whole: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Messages on what differs between a finished run and the uninterrupted one."""
    found = []
    steps = complete_steps(whole), complete_steps(workdir)
    if max(steps[0]["checkpoints"]) != max(steps[1]["checkpoints"]):
        found.append("the last step differs")
    if max(steps[0]["best"]) != max(steps[1]["best"]):
        found.append(f"best is step {steps[1]['best']}, not {steps[0]['best']}")
    for name, kept in KEPT.items():
        there = sorted(steps[1][name])
        if len(there) > kept:
            found.append(f"{name}/{there[0]} was replaced and not deleted")
        for step in there[-kept:]:
            found += different_steps(whole, workdir, name, step)
    for name in ("eval.json", "predictions.json"):
        if (whole / name).read_bytes() != (workdir / name).read_bytes():
            found.append(f"{name} differs")
    if rows(whole) != rows(workdir):
        found.append("the rows of metrics.jsonl differ")
    return found


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of the log without values that depend on the clock."""
    return [
        {key: value for key, value in row.items() if key != "train/images_per_second"}
        for row in log_lib.read_rows(workdir / "metrics.jsonl")
    ]


def table(kills: list[Kill]) -> str:
    lines = [f"{'kill':>4}  {'after':>7}  {'complete':>8}  {'resumed':>7}  phase"]
    for number, kill in enumerate(kills, start=1):
        complete = "-" if kill.complete is None else kill.complete
        lines.append(
            f"{number:4}  {kill.seconds:5.2f} s  {complete:>8}  {kill.resumed:>7}  {kill.phase}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run_main(main)

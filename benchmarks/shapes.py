"""Trains every detector by the shapes protocol and collects AP and time in one table.

    python -m benchmarks.shapes --runs runs/shapes --output benchmarks/results/shapes_cpu.json
    python -m benchmarks.shapes --runs runs/shapes --only fcos_shapes --only retinanet_shapes@1

The protocol is experiments/recipes/small.py: equal images, steps, batch size, optimizer and
schedule.  A row NAME@SEED is another seed of the experiment NAME.  Each run is a process of
`detlab.train`, whose output goes to RUNS/ROW.log.

Needs no attention: a run that fails leaves its reason in the table and the next one starts.  The
same command continues an interrupted run and keeps the finished ones.  Seconds of the wall clock
and of the processor are those of the last start, so they are only kept for runs in one piece.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import command, machine
from detlab import cli, errors, files
from detlab import config as config_lib

SEEDS = {"retinanet_shapes": (1, 2)}  # more than seed 0: the first command of the README


def rows() -> list[str]:
    """Every shipped experiment on shapes, and the other seeds of some."""
    names = [name for name in config_lib.shipped() if name.endswith("_shapes")]
    return [*names, *(f"{name}@{seed}" for name, seeds in SEEDS.items() for seed in seeds)]


def main(arguments: Sequence[str]) -> None:
    parser = cli.program("benchmarks.shapes", __doc__)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder for the runs")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON of the table")
    parser.add_argument("--only", action="append", default=[], help="a row; may be repeated")
    args, _ = cli.parse(arguments, parser)
    names = command.choose(args.only, rows(), "run")
    command.make_folder(args.runs)
    command.make_folder(args.output.parent)
    for name in names:
        found = measured(args.output)
        if "figures" not in found.get(name, {}):
            row = run(name, args.runs)
            # Read again: several of these commands may write to one file.
            found = measured(args.output) | {name: row}
            found = {key: found[key] for key in rows() if key in found}
            files.write_json(args.output, {"machine": machine.describe(), "rows": found})
        print(line(name, found[name]), flush=True)


def measured(path: pathlib.Path) -> dict:
    """The rows that a file already has."""
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def run(name: str, runs: pathlib.Path) -> dict:
    """Trains, and returns the row: figures and seconds, or the error."""
    config, _, seed = name.partition("@")
    workdir, log = runs / name, runs / f"{name}.log"
    whole = not workdir.exists()
    words = [sys.executable, "-m", "detlab.train", "--config", config, "--workdir", str(workdir)]
    used, start = processor_seconds(), time.monotonic()
    with log.open("a") as output:
        words.append(f"--config.seed={seed or 0}")
        done = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [x for x in log.read_text().splitlines() if x.startswith("error: ")]
        return {"error": lines[-1] if lines else f"status {done.returncode}; see {log.name}"}
    row = {"figures": json.loads((workdir / "eval.json").read_text())}
    del row["figures"]["classes"]
    if whole:
        row["seconds"] = round(time.monotonic() - start)
        row["processor_seconds"] = round(processor_seconds() - used)
    return row


def processor_seconds() -> float:
    """User and system time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(name: str, row: dict) -> str:
    if "figures" not in row:
        return f"{name:22} {row['error']}"
    figures = "  ".join(f"{key} {row['figures'][key]:.3f}" for key in ("AP", "AP50", "AP75"))
    times = ""
    if "seconds" in row:
        times = f"  {row['seconds']} s, {row['processor_seconds']} s of processor time"
    return f"{name:22} {figures}{times}"


if __name__ == "__main__":
    errors.run_main(main)

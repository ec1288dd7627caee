"""Trains every detector by the shapes protocol and collects AP and processor time in one table.

    python -m benchmarks.shapes --runs runs/shapes --output benchmarks/results/shapes_cpu.json
    python -m benchmarks.shapes --runs runs/shapes --only fcos_shapes --only retinanet_shapes@1

The protocol is experiments/recipes/small.py: equal images, steps, batch size, optimizer and
schedule.  A row NAME@SEED is another seed of the experiment NAME.  Each run is a process of
`detlab.train`, whose output goes to RUNS/ROW.log.

Needs no attention: a run that fails leaves its reason in the table and the next one starts.  The
same command continues an interrupted run and keeps the finished ones.  The processor seconds, which
depend little on other load, are those of the last start and only kept for runs in one piece.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import command, machine, turns
from detlab import cli, errors, files, paths
from detlab import config as config_lib

SEEDS = {"retinanet_shapes": (1, 2)}  # more than seed 0: the first command of the README


def rows() -> list[str]:
    """Every shipped experiment on shapes, and the other seeds of some."""
    names = [name for name in config_lib.shipped() if name.endswith("_shapes")]
    return [*names, *(f"{name}@{seed}" for name, seeds in SEEDS.items() for seed in seeds)]


def main(arguments: Sequence[str]) -> None:
    parser = cli.program("benchmarks.shapes", __doc__)
    parser.add_argument("--runs", type=paths.path, required=True, help="folder for the runs")
    parser.add_argument("--output", type=paths.path, required=True, help="JSON of the table")
    parser.add_argument("--only", action="append", default=[], help="a row; may be repeated")
    args = parser.parse_args(arguments)
    names = command.choose(args.only, rows(), "run")
    command.make_folder(args.runs)
    command.make_folder(args.output.parent)
    for name in names:
        found = command.rows_of(args.output)
        if "figures" not in found.get(name, {}):
            row = run(name, args.runs)
            # Read again: several of these commands may write to one file.
            found = command.rows_of(args.output) | {name: row}
            found = {key: found[key] for key in rows() if key in found}
            files.write_json(args.output, {"machine": machine.describe(), "rows": found})
        print(line(name, found[name]), flush=True)


def run(name: str, runs: pathlib.Path) -> dict:
    """Trains, and returns the row: figures and seconds, or the error."""
    config, _, seed = name.partition("@")
    workdir, log = runs / name, runs / f"{name}.log"
    whole = not workdir.exists()
    words = [sys.executable, "-m", "detlab.train", "--config", config, "--workdir", str(workdir)]
    used = turns.processor_seconds()
    words.append(f"--config.seed={seed or 0}")
    with log.open("a") as output:
        done = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = command.last_error(log.read_text())
        return {"error": said or f"status {done.returncode}; see {log.name}"}
    row = {"figures": json.loads((workdir / "eval.json").read_text())}
    del row["figures"]["classes"]
    if whole:
        row["processor_seconds"] = round(turns.processor_seconds() - used)
    return row


def line(name: str, row: dict) -> str:
    if "figures" not in row:
        return f"{name:22} {row['error']}"
    figures = "  ".join(f"{key} {row['figures'][key]:.3f}" for key in ("AP", "AP50", "AP75"))
    seconds = f"  {row['processor_seconds']} processor s" if "processor_seconds" in row else ""
    return f"{name:22} {figures}{seconds}"


if __name__ == "__main__":
    errors.run_main(main)

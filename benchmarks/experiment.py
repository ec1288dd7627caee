r"""Runs an experiment to the end and records its results and its duration.

    python -m benchmarks.experiment --workdir runs/shapes --output result.json \
        --config experiments/retinanet_shapes.py

Unknown arguments are passed on to `detlab.train`.  If the run in the workdir has finished, it is
only summarised.
"""

import json
import pathlib
import subprocess
import sys

from benchmarks import machine
from detlab import cli, errors, files, paths
from detlab.run import log as log_lib


def main(arguments: list[str]) -> None:
    parser = cli.program("benchmarks.experiment", __doc__)
    parser.add_argument("--workdir", type=paths.path, required=True)
    parser.add_argument("--output", type=paths.path, required=True)
    parser.add_argument("--note", default="", help="anything a reader should know about the run")
    args, rest = parser.parse_known_args(arguments)
    if not (args.workdir / "eval.json").exists():
        words = [sys.executable, "-m", "detlab.train", "--workdir", str(args.workdir), *rest]
        subprocess.run(words, check=True)
    result = {**summarise(args.workdir), "note": args.note}
    files.write_json(args.output, result)
    figures = result["figures"]
    print(f"AP {figures['AP']:.3f}  AP50 {figures['AP50']:.3f}  in {result['seconds']:.0f} s")
    print(f"wrote {args.output}")


def summarise(workdir: pathlib.Path) -> dict:
    """The results of a run that finished without interruption."""
    rows = log_lib.read_rows(workdir / "metrics.jsonl")
    figures = json.loads((workdir / "eval.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["root"] = pathlib.Path(config["data"]["root"]).name  # without its location
    seconds = (workdir / "eval.json").stat().st_mtime - (workdir / "config.json").stat().st_mtime
    train = [row for row in rows if "train/loss" in row]
    thinned = train[:: max(len(train) // 50, 1)]
    return {
        "machine": machine.describe(),
        "seconds": round(seconds, 1),  # from the first file of the run to the last
        "seed": config["seed"],
        "figures": {k: v for k, v in figures.items() if k != "classes"},
        "classes": figures["classes"],
        "best": max(row[f"eval/{config['eval']['best_by']}"] for row in rows if "eval/AP" in row),
        "curve": {
            "train": [
                _short(row, "train/loss", "train/loss/cls", "train/loss/box") for row in thinned
            ],
            "eval": [_short(row, "eval/AP", "eval/AP50") for row in rows if "eval/AP" in row],
        },
        "counted": {k: v for k, v in train[-1].items() if k.startswith("data/")},
        "images_per_second": sorted(r["train/images_per_second"] for r in train)[len(train) // 2],
        "config": config,
    }


def _short(row: dict, *keys: str) -> dict:
    return {"step": row["step"], **{k: round(row[k], 4) for k in keys}}


if __name__ == "__main__":
    errors.run_main(main)

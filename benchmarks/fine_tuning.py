r"""Do published weights help on another data set, compared with training from scratch?

    python -m benchmarks.fine_tuning --weights ../shared/weights --data ../shared/data/bccd \
        --output benchmarks/results --picture docs/images/fine_tuning.png

Converts published COCO weights of YOLOv5n (PyTorch) and yolo-fastest (darknet) without the layers
that predict classes, and trains them on BCCD.  Trains the same network from random weights too,
with the same settings: those of the experiment, changed by --config.KEY=VALUE.  Both curves of a
network go to OUTPUT/fine_tuning_NAME.json; --picture draws all results in that folder.  Exit status
1 if the weights did not help.
"""

import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import command, experiment
from detlab import cli, errors, files, paths


class Network(NamedTuple):
    """Where weights come from and how to train them; {weights} stands for their folder."""

    config: str
    convert: tuple[str, ...]


NETWORKS = {
    "yolov5n": Network(
        "yolov5_bccd:n",
        ("--source=yolov5", "--config=yolov5_coco:n", "--input={weights}/yolov5n-v6.pt"),
    ),
    "yolo_fastest": Network(
        "darknet_bccd:{weights}/yolo-fastest-1.1.cfg",
        (
            "--config=darknet_bccd",
            "--input={weights}/yolo-fastest-1.1.weights",
            "--cfg={weights}/yolo-fastest-1.1.cfg",
            "--reset_classes",
        ),
    ),
}


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.fine_tuning", __doc__)
    parser.add_argument(
        "--weights", type=paths.expand, required=True, help="folder of published weights"
    )
    parser.add_argument(
        "--data", type=paths.expand, required=True, help="folder of the BCCD data set"
    )
    parser.add_argument("--only", action="append", default=[], help="a name; may be repeated")
    parser.add_argument("--output", type=paths.path, required=True, help="folder of results")
    parser.add_argument("--picture", type=paths.path, help="PNG of all curves in that folder")
    args, overrides = cli.parse(arguments, parser)
    names = command.choose(args.only, NETWORKS, "network")
    command.make_folder(args.output)
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fine_tuning") as folder:
            result = run(name, args.weights, args.data, pathlib.Path(folder), overrides)
        files.write_json(args.output / f"fine_tuning_{name}.json", result)
        reached = {start: result[start]["figures"] for start in ("weights", "scratch")}
        print(name, *(f"{s}: AP {f['AP']:.3f}, AP50 {f['AP50']:.3f};" for s, f in reached.items()))
        if reached["weights"]["AP"] <= reached["scratch"]["AP"]:
            failed.append(name)
    if args.picture:
        draw(args.output, args.picture)
    if failed:
        print(f"weights did not help: {', '.join(failed)}")
        sys.exit(1)


def run(name: str, weights: str, data: str, folder: pathlib.Path, overrides) -> dict:
    """{"weights": ..., "scratch": ...}, each as `experiment.summarise` returns it."""
    network = NETWORKS[name]
    converted = folder / "converted"
    words = [word.format(weights=weights) for word in network.convert]
    command.run_module("detlab.converters.convert", *words, f"--output={converted}")
    settings = [f"--config={network.config.format(weights=weights)}", f"--config.data.root={data}"]
    settings += [f"--config.{key}={value}" for key, value in overrides.items()]
    result = {"name": name}
    for start, more in (("weights", [f"--config.init_from={converted}"]), ("scratch", [])):
        command.run_module("detlab.train", *settings, *more, f"--workdir={folder / start}")
        result[start] = experiment.summarise(folder / start)
        result[start]["config"]["init_from"] = name if more else ""  # without its location
    return result


def draw(folder: pathlib.Path, picture: pathlib.Path) -> None:
    """Draws AP and AP50 over steps for every result in a folder."""
    from matplotlib import figure as figure_lib  # here, so that programs start without it

    results = [json.loads(path.read_text()) for path in sorted(folder.glob("fine_tuning_*.json"))]
    figure = figure_lib.Figure(figsize=(5 * len(results), 4), layout="constrained")
    for axis, result in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results, strict=True
    ):
        for start, color in (("weights", "C0"), ("scratch", "C1")):
            rows = result[start]["curve"]["eval"]
            steps = [row["step"] for row in rows]
            for key, line in (("eval/AP50", "-"), ("eval/AP", "--")):
                values = [row[key] for row in rows]
                label = f"{key.removeprefix('eval/')}, from {start}"
                axis.plot(steps, values, line, color=color, marker="o", markersize=3, label=label)
        axis.set_title(f"{result['name']} on BCCD", loc="left", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    command.make_folder(picture.parent)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    errors.run_main(main)

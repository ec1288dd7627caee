"""Checks that each detector can overfit eight images, trained by `detlab.train`.

    python -m benchmarks.overfit --output benchmarks/results
    python -m benchmarks.overfit --only fcos --only reppoints --output results

Writes eight pictures of shapes with at least three objects each as a COCO data set, then trains and
evaluates small detectors on it: every variant `overfit` or `overfit_NETWORK` of
experiments/<detector>_shapes.py, changed by --config.KEY=VALUE.  A detector without faults finds
all objects again: AP50 must reach 0.9, and the exit status is 1 if one misses it.  The curve and
the processor time of a detector go to OUTPUT/overfit_NAME_PLATFORM.json; --picture draws all curves
in that folder.
"""

import json
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import cv2

from benchmarks import command, machine
from detlab import cli, errors, files, paths
from detlab import config as config_lib
from detlab.data import shapes
from detlab.run import log as log_lib

IMAGES, LEAST_OBJECTS, SIDE = 8, 3, 96
WANTED = 0.9  # AP50
EVALUATIONS = 10


def find() -> dict[str, str]:
    """Name -> config: the variants `overfit` and `overfit_NETWORK` of every <detector>_shapes."""
    configs = {}
    for name in config_lib.shipped():
        for variant in config_lib.variants(name):
            if variant.startswith("overfit"):
                network = variant.removeprefix("overfit")
                configs[name.removesuffix("_shapes") + network] = f"{name}:{variant}"
    return configs


OVERFIT = find()


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.overfit", __doc__)
    parser.add_argument("--only", action="append", default=[], help="a name; may be repeated")
    parser.add_argument("--steps", type=int, help="replaces the number in each config")
    parser.add_argument("--output", type=paths.path, required=True, help="folder of results")
    parser.add_argument("--picture", type=paths.path, help="PNG of all curves in that folder")
    args, overrides = cli.parse(arguments, parser)
    if args.steps:
        each = max(args.steps // EVALUATIONS, 1)
        lengths = dict(steps=args.steps, eval_every=each, checkpoint_every=args.steps)
        overrides = {f"train.{key}": str(value) for key, value in lengths.items()} | overrides
    names = command.choose(args.only, OVERFIT, "detector")
    command.make_folder(args.output)
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="overfit") as folder:
            result = run(name, overrides, pathlib.Path(folder))
        path = args.output / f"overfit_{name}_{result['platform']}.json"
        files.write_json(path, result)
        rows.append(result)
        print(line(result), flush=True)
    if args.picture:
        draw(args.output, args.picture)
    missed = [row["name"] for row in rows if row["AP50"] < WANTED]
    print(f"{len(rows)} detectors, {len(rows) - len(missed)} reach AP50 {WANTED}")
    if missed:
        print(f"missed: {', '.join(missed)}")
        sys.exit(1)


def write_images(folder: pathlib.Path) -> None:
    """Writes the first eight training pictures with enough objects as a COCO data set."""
    (folder / "images").mkdir()
    images, annotations = [], []
    source = shapes.Shapes("train", size=SIDE)
    for i in range(len(source)):
        record = source[i]
        if len(record["boxes"]) < LEAST_OBJECTS:
            continue
        file = f"{i}.png"
        cv2.imwrite(str(folder / "images" / file), record["image"][..., ::-1])
        images.append({"id": i, "file_name": file, "height": SIDE, "width": SIDE})
        for (x1, y1, x2, y2), label in zip(
            record["boxes"].tolist(), record["labels"].tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        if len(images) == IMAGES:
            break
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(shapes.CLASS_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))


def run(name: str, overrides: Mapping[str, str], folder: pathlib.Path) -> dict:
    """Trains in a separate process and measures its processor time."""
    write_images(folder)
    overrides = {"data.root": str(folder), **overrides}
    config = config_lib.load(OVERFIT[name], overrides)
    words = ["--config", OVERFIT[name], "--workdir", str(folder / "run")]
    words += [f"--config.{key}={value}" for key, value in overrides.items()]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command.run_module("detlab.train", *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = log_lib.read_rows(folder / "run" / "metrics.jsonl")
    evaluations = [row for row in rows if "eval/AP50" in row]
    described = machine.describe()
    return {
        "name": name,
        "machine": described,
        "platform": "cpu" if "cpu" in described["device"].lower() else "gpu",
        "AP50": evaluations[-1]["eval/AP50"],
        "AP": evaluations[-1]["eval/AP"],
        "cpu_minutes": round(seconds / 60, 2),
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "curve": {
            "train": [[row["step"], row["train/loss"]] for row in rows if "train/loss" in row],
            "eval": [[row["step"], row["eval/AP50"]] for row in evaluations],
        },
        "steps": config.train.steps,
        "lr": config.optim.lr,
        "canvas": config.data.canvases[0][0],
        "model": {key: x for key, x in config.model.items() if key != "num_classes"},
    }


def line(result: dict) -> str:
    """One line of the table."""
    losses = result["curve"]["train"]
    return (
        f"{result['name']:16} AP50 {result['AP50']:.3f}  AP {result['AP']:.3f}  loss"
        f" {losses[0][1]:.3g} -> {losses[-1][1]:.3g} in {result['steps']} steps,"
        f" {result['cpu_minutes']:.1f} CPU minutes"
    )


def draw(folder: pathlib.Path, picture: pathlib.Path) -> None:
    """Draws AP50, and the loss relative to the first, for every result in a folder."""
    from matplotlib import figure as figure_lib  # here, so that programs start without it

    results = [json.loads(path.read_text()) for path in sorted(folder.glob("overfit_*.json"))]
    figure = figure_lib.Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, result in enumerate(results):
        style = dict(label=result["name"], linestyle=("-", "--", ":")[i // 10 % 3])
        steps, losses = zip(*result["curve"]["train"], strict=True)
        left.semilogy(steps, [loss / losses[0] for loss in losses], **style)
        right.plot(*zip(*result["curve"]["eval"], strict=True), marker="o", markersize=3, **style)
    left.set_title("loss, relative to the first", loc="left", fontsize=10)
    right.set_title("AP50 on the eight images", loc="left", fontsize=10)
    right.axhline(WANTED, color="grey", linewidth=0.8)
    right.set_ylim(0, 1.02)
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    right.legend(fontsize=8)
    command.make_folder(picture.parent)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    errors.run_main(main)

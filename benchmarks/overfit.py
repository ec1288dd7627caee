"""Can each detector learn eight images by heart, through `detlab.train` as it is?

    python -m benchmarks.overfit --output benchmarks/results
    python -m benchmarks.overfit --only fcos --only reppoints --output results

Eight pictures of shapes with at least three objects each are written as a COCO data set, on which
a small form of the detector is trained and evaluated.  A detector that is right in every part
finds all objects again: AP50 of 0.9 or more is asked, and the exit status is 1 where one misses it.
Of each detector the curve is written to OUTPUT/overfit_NAME.json, with the processor time, and
--picture draws all curves that lie there.
"""

import json
import pathlib
import resource
import sys
import tempfile
import time
from typing import NamedTuple, Sequence

import cv2

from benchmarks import command
from benchmarks import machine
from detlab import errors
from detlab import flags
from detlab import run_log
from detlab.data import shapes

IMAGES, LEAST_OBJECTS, SIDE = 8, 3, 96
WANTED = 0.9  # AP50
EVALUATIONS = 10


class Entry(NamedTuple):
    """A small form of a detector, and how it is trained."""

    detector: str
    model: dict
    steps: int = 300
    lr: float = 2e-3
    canvas: int = SIDE  # px that the pictures are resized to


_RESNET = dict(
    depth=18,
    backbone_norm="batch",
    frozen_stages=0,
    backbone_width=16,
    backbone_stages=(1, 1, 1, 1),
    neck_width=48,
)
_DENSE = dict(**_RESNET, head_width=48, head_convs=2)


def _darknet(cfg: str, canvas: int) -> Entry:
    """Many steps, as its running statistics follow slowly (0.99) those of the batch."""
    return Entry("darknet", dict(cfg=cfg, width_multiple=0.25), steps=800, canvas=canvas)


# Anchors and grids for objects of 12 to 52 px.
OVERFIT = {
    "retinanet": Entry("retinanet", dict(**_DENSE, octave_base_scale=2.5)),
    "ghm": Entry("ghm", dict(**_DENSE, octave_base_scale=2.5, box_weight=10.0)),
    "fcos": Entry(
        "fcos",
        dict(
            **_DENSE,
            norm_groups=16,
            level_limits=(24.0, 48.0, 96.0, 192.0),
            center_radius=1.5,
            distances_in_strides=True,
            centerness_on_box=True,
            box_loss="giou",
            nms_iou=0.6,
            pixel_std=(58.395, 57.12, 57.375),
        ),
    ),
    "yolov3": Entry(
        "yolov3",
        dict(
            backbone_norm="batch",
            backbone_width=16,
            backbone_blocks=(1, 1, 1, 1, 1),
            neck_width=32,
            head_width=64,
            anchor_sizes=(
                ((18, 18), (18, 32), (32, 18)),
                ((18, 46), (32, 32), (46, 18)),
                ((32, 46), (46, 32), (46, 46)),
            ),
        ),
    ),
    "faster_rcnn": Entry(
        "faster_rcnn",
        dict(
            **_RESNET,
            rpn_width=48,
            strides=(4, 8, 16, 32),
            anchor_scale=4.5,
            rpn_samples=64,
            train_proposals_per_level=200,
            train_proposals=64,
            proposals_per_level=100,
            proposals=64,
            box_width=128,
            roi_scale=21.0,
            box_samples=64,
        ),
    ),
    "cornernet": Entry(
        "cornernet",
        dict(
            stacks=1,
            channels=(32, 32, 48, 64),
            blocks=(1, 1, 1, 1),
            pool_width=24,
            head_width=32,
        ),
        steps=400,
    ),
    "reppoints": Entry(
        "reppoints", dict(**_DENSE, point_width=48, norm_groups=16, point_scale=3.0)
    ),
    # The cfgs' own anchors, made for objects of 10 px and more on larger pictures.
    "darknet_yolov3": _darknet("yolov3", 128),
    "darknet_yolov3_tiny": _darknet("yolov3-tiny", 160),
    "darknet_yolov4": _darknet("yolov4", 128),
    "darknet_yolov4_tiny": _darknet("yolov4-tiny", 160),
    "yolov5": Entry("yolov5", dict(width_multiple=0.25), steps=400, canvas=160),
    "yolov5_release3": Entry(
        "yolov5",
        dict(
            width_multiple=0.25,
            block="csp",
            activation="hard_swish",
            stem="focus",
            pool="spp",
            repeats=(3, 9, 9, 3),
        ),
        steps=400,
        canvas=160,
    ),
}

CONFIG = """
from ml_collections import ConfigDict

from experiments import common


def get_config():
    config = common.base({detector!r})
    config.model = ConfigDict({model!r})
    config.data.update(
        source="coco",
        root={root!r},
        train_images="images",
        train_annotations="boxes.json",
        eval_images="images",
        eval_annotations="boxes.json",
        canvases=(({canvas}, {canvas}),),
        flip_horizontal=0.0,
        max_boxes=8,
    )
    config.train.update(
        batch_size={images},
        steps={steps},
        log_every=10,
        eval_every={eval_every},
        checkpoint_every={steps},
    )
    config.optim.update(
        name="adamw",
        lr={lr},
        lr_batch_size=0,
        schedule="cosine",
        warmup_steps=20,
        warmup_factor=0.01,
        clip_norm=35.0,
    )
    config.eval.update(batch_size={images}, best_by="AP50", pictures=0)
    return config
"""


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    parser = flags.program("benchmarks.overfit", __doc__)
    parser.add_argument("--only", action="append", default=[], help="a name; may be repeated")
    parser.add_argument("--steps", type=int, help="instead of each entry's own")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of results")
    parser.add_argument("--picture", type=pathlib.Path, help="PNG of all curves in that folder")
    args = parser.parse_args(arguments)
    names = command.choose(args.only, OVERFIT, "detector")
    command.make_folder(args.output)
    rows = []
    for name in names:
        entry = OVERFIT[name]
        if args.steps:
            entry = entry._replace(steps=args.steps)
        with tempfile.TemporaryDirectory(prefix="overfit") as folder:
            result = run(name, entry, pathlib.Path(folder))
        path = args.output / f"overfit_{name}_{result['platform']}.json"
        command.write_json(path, result)
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
    """The first eight training pictures with enough objects, as a COCO data set."""
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
        for (x1, y1, x2, y2), label in zip(record["boxes"].tolist(), record["labels"].tolist()):
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


def run(name: str, entry: Entry, folder: pathlib.Path) -> dict:
    """Trains in a process of its own, whose processor time is counted."""
    write_images(folder)
    config = CONFIG.format(
        detector=entry.detector,
        model={"num_classes": len(shapes.CLASS_NAMES), **entry.model},
        root=str(folder),
        canvas=entry.canvas,
        images=IMAGES,
        steps=entry.steps,
        eval_every=max(entry.steps // EVALUATIONS, 1),
        lr=entry.lr,
    )
    (folder / "overfit.py").write_text(config)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    files = ["--config", str(folder / "overfit.py"), "--workdir", str(folder / "run")]
    command.run_module("detlab.train", *files)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = run_log.read_rows(folder / "run" / "metrics.jsonl")
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
        "steps": entry.steps,
        "lr": entry.lr,
        "canvas": entry.canvas,
        "model": entry.model,
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
    """AP50 and loss, as a part of the first, of every result in a folder."""
    from matplotlib import figure as figure_lib  # here, so that programs start without it

    results = [json.loads(path.read_text()) for path in sorted(folder.glob("overfit_*.json"))]
    figure = figure_lib.Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, result in enumerate(results):
        style = dict(label=result["name"], linestyle=("-", "--", ":")[i // 10 % 3])
        steps, losses = zip(*result["curve"]["train"])
        left.semilogy(steps, [loss / losses[0] for loss in losses], **style)
        right.plot(*zip(*result["curve"]["eval"]), marker="o", markersize=3, **style)
    left.set_title("loss, part of the first", loc="left", fontsize=10)
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

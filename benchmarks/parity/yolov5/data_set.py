"""Published weights on a small part of COCO, as the reference's val.py runs them."""

import collections
import pathlib
import re

import numpy as np

from benchmarks.parity import checks, runner
from benchmarks.parity.yolov5 import model as model_lib
from detlab import evaluation
from detlab.data import coco as coco_data
from detlab.metrics import coco as coco_metrics


def run(
    fixtures: pathlib.Path, name: str, info: dict, settings: runner.Settings
) -> list[checks.Line]:
    """Detections on every image of a data set in COCO format, and COCO's twelve figures.

    The compared detections use the reference's suppression, the figures detlab's.
    """
    model = model_lib.published(info, settings, multi_label=True, max_detections=300)
    root = settings.folders.data / info["data"]
    source = coco_data.Coco(root / "val2017", root / "annotations" / "instances_val2017.json")
    by_canvas = collections.defaultdict(list)  # one after the other: each is a program
    for i in range(len(source)):
        by_canvas[model_lib.canvas(*source.size(i))].append(i)
    own, found = {}, {}
    for canvas, indices in by_canvas.items():
        for i in indices:
            name = source.image_id(i)
            own[name], found[name] = model.on_picture(source[i]["image"], canvas)

    # The published weights label the 80 classes in the order of their ids, as detlab does.
    ids = list(source.category_ids)
    recorded = {name: [] for name in found}
    for d in info["detections"]:
        x, y, w, h = d["bbox"]
        row = [x, y, x + w, y + h, d["score"], ids.index(d["category_id"])]
        recorded[d["image_id"]].append(row)
    theirs = [model_lib.listed(rows) for rows in recorded.values()]
    lines = checks.detections(list(found.values()), theirs, scores=model_lib.LISTED_SCORES)
    predictions = [
        {
            "image_id": source.image_id(i),
            "boxes": own[source.image_id(i)].boxes.astype(np.float32),
            "scores": own[source.image_id(i)].scores,
            "labels": own[source.image_id(i)].labels,
        }
        for i in range(len(source))
    ]
    figures = coco_metrics.evaluate(
        evaluation.ground_truth(source), predictions, source.class_names
    )
    for name, value in info["pycocotools"].items():
        mine = figures[re.sub(r"AR_(\d)", r"AR\1", name)]
        lines.append(checks.figure(f"figure {name}", mine, value))
    return lines

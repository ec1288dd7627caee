"""COCO average precision of boxes, computed by pycocotools (Lin et al., arXiv:1405.0312).

AP is the mean over the IoU thresholds .50:.05:.95 of the precision interpolated at 101 recalls.
Ignored boxes are crowd boxes: a detection inside one, measured by intersection over its own area,
counts neither for nor against.  -1 means that there was nothing to average: no object of that size
or class.
"""

import contextlib
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from detlab.metrics import inputs

# In the order of `COCOeval.stats`.  AP50 and AP75 are at one IoU; small, medium and large are areas
# below 32^2, up to 96^2 and above, px^2; AR1, AR10 and AR100 allow that many detections per image.
SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large") + (
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


def evaluate(
    ground_truth: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """The 12 COCO numbers, and those of each class.

    Args:
      ground_truth, predictions: lists of dicts, one per image; see `detlab.metrics.inputs`.
      class_names: sequence of C names.
    Returns:
      dict of floats under the names of `SUMMARY`, and `classes`: list of C dicts with `name`, `AP`,
      `AP50`, `AP75`, `AR100`, `num_objects` (without ignored ones) and `num_detections`.
    Raises:
      ValueError: inputs that do not fit together; see `inputs.flatten`.
    """
    objects, detected = inputs.flatten(ground_truth, predictions, len(class_names))
    evaluator = run(objects, detected, len(ground_truth), len(class_names))
    return summarise(evaluator, objects, detected, class_names)


def run(
    objects: inputs.Objects, detected: inputs.Detected, num_images: int, num_classes: int
) -> Any:
    """The `COCOeval` of pycocotools for the boxes, evaluated, accumulated and summarised.

    Its ids are positions from 1: of images, categories, objects and detections.
    """
    from pycocotools import cocoeval  # here, so that programs start without it and matplotlib

    index = functools.partial(_index, num_images=num_images, num_classes=num_classes)
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = cocoeval.COCOeval(
            index(objects, area=objects.area, iscrowd=objects.ignore.astype(int)),
            index(detected, area=_box_areas(detected.boxes), score=detected.scores),
            "bbox",
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def summarise(
    evaluator: Any,
    objects: inputs.Objects,
    detected: inputs.Detected,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """The result of `evaluate` from what `run` gave."""
    # Area "all" is the first range, 100 detections the last limit.
    precision = evaluator.eval["precision"][..., 0, -1]  # [10 IoUs, 101 recalls, C]
    recall = evaluator.eval["recall"][..., 0, -1]  # [10 IoUs, C]
    num_objects = np.bincount(objects.labels[~objects.ignore], minlength=len(class_names))
    num_detections = np.bincount(detected.labels, minlength=len(class_names))
    classes = [
        {
            "name": name,
            "AP": _mean(precision[:, :, label]),
            "AP50": _mean(precision[0, :, label]),
            "AP75": _mean(precision[5, :, label]),
            "AR100": _mean(recall[:, label]),
            "num_objects": int(num_objects[label]),
            "num_detections": int(num_detections[label]),
        }
        for label, name in enumerate(class_names)
    ]
    return {**dict(zip(SUMMARY, map(float, evaluator.stats), strict=True)), "classes": classes}


def _index(boxes, num_images, num_classes, **columns):
    """A pycocotools index of `inputs.Objects` or `inputs.Detected` with further columns.

    Ids start at 1, because pycocotools treats a match with the id 0 as no match.  Detections are
    indexed like objects, not by `loadRes`, which fails if there are none.
    """
    from pycocotools import coco as coco_lib

    xyxy = boxes.boxes.astype(np.float64)
    columns = {
        "id": np.arange(1, len(xyxy) + 1),
        "image_id": boxes.image + 1,
        "category_id": boxes.labels + 1,
        "bbox": np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1),
        **columns,
    }
    # Lists of Python numbers: pycocotools is slow on NumPy scalars.
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    index = coco_lib.COCO()
    index.dataset = {
        "images": [{"id": image + 1} for image in range(num_images)],
        "categories": [{"id": label + 1} for label in range(num_classes)],
        "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    index.createIndex()
    return index


def _box_areas(boxes):
    return np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)


def _mean(values):
    """Mean over the values that exist; -1 if there are none, as in pycocotools."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0

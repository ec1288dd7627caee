"""PASCAL VOC average precision (Everingham et al., IJCV 2010 and its development kits).

The detections of a class over all images are taken in descending order of score.  Each is compared
with the object of its class and image that it overlaps most, matched or not.  Below the threshold
it is a false positive.  An ignored (difficult) object makes it neither true nor false, an unmatched
object makes it a true positive, and a matched one a false positive.  The results equal those of
mmdetection's `eval_map`, except that equal scores keep their order here.

Letters for axes: D detections, M objects, both over all images; E detections of one class.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.metrics import inputs

RULES = ("area", "11points")


class Matches(NamedTuple):
    """Each detection's best object: shared by all thresholds, classes and size ranges."""

    objects: inputs.Objects  # M
    detected: inputs.Detected  # D
    best: np.ndarray  # [D] index of the object; -1 where the image has none of the class
    iou: np.ndarray  # [D] float32 with that object; 0 where there is none
    object_areas: np.ndarray  # [M] float32 px^2, of the boxes
    detected_areas: np.ndarray  # [D] float32 px^2


class Decisions(NamedTuple):
    """The detections of one class by descending score; neither true nor false means not counted."""

    index: np.ndarray  # [E] into `Matches.detected`
    true: np.ndarray  # [E] bool
    false: np.ndarray  # [E] bool
    num_objects: int  # not ignored and within the size range


def match(
    ground_truth: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    num_classes: int,
    legacy_plus_one: bool = False,
) -> Matches:
    """Finds each detection's best object.

    Args:
      ground_truth, predictions: lists of dicts, one per image; see `detlab.metrics.inputs`.
      num_classes: C.
      legacy_plus_one: sizes are x2 - x1 + 1, the convention of whole pixels.
    Returns:
      Matches.
    Raises:
      ValueError: the inputs do not fit together; see `inputs.flatten`.
    """
    objects, detected = inputs.flatten(ground_truth, predictions, num_classes)
    best = np.full(len(detected.boxes), -1)
    iou = np.zeros(len(detected.boxes), np.float32)
    object_areas = _areas(objects.boxes, legacy_plus_one)
    detected_areas = _areas(detected.boxes, legacy_plus_one)

    # Among equal overlaps the first wins: an object that is not ignored before one that is.
    order = np.lexsort((objects.ignore, objects.image))
    images = np.arange(len(ground_truth) + 1)
    object_ends = np.searchsorted(objects.image[order], images)
    detected_ends = np.searchsorted(detected.image, images)
    for image in range(len(ground_truth)):
        rows = slice(*detected_ends[image : image + 2])
        columns = order[slice(*object_ends[image : image + 2])]
        if not len(columns) or rows.start == rows.stop:
            continue
        boxes = detected.boxes[rows, None]  # [d, 1, 4]
        gt_boxes = objects.boxes[columns]  # [m, 4]
        low = np.maximum(boxes[..., :2], gt_boxes[:, :2])
        high = np.minimum(boxes[..., 2:], gt_boxes[:, 2:])
        overlap = _areas(np.concatenate([low, high], axis=-1), legacy_plus_one)  # [d, m]
        union = detected_areas[rows, None] + object_areas[columns] - overlap
        same_class = detected.labels[rows, None] == objects.labels[columns]
        ious = np.where(same_class, overlap / np.maximum(union, np.float32(1e-6)), -1)
        position = ious.argmax(axis=1)
        best[rows] = np.where(same_class.any(axis=1), columns[position], -1)
        iou[rows] = np.maximum(ious.max(axis=1), 0)
    return Matches(objects, detected, best, iou, object_areas, detected_areas)


def decide(
    matches: Matches,
    label: int,
    iou_threshold: float = 0.5,
    size_range: tuple[float, float] | None = None,
) -> Decisions:
    """Which detections of a class are true and which are false positives.

    Args:
      matches: from `match`.
      label: the class.
      iou_threshold: least overlap of a detection with its object.
      size_range: (low, high) px, or None for all.  Objects are ignored unless
        low <= sqrt(area) < high, and so are detections of other sizes without an object.
    Returns:
      Decisions.
    """
    objects, detected = matches.objects, matches.detected
    counted = (objects.labels == label) & ~objects.ignore  # [M]
    of_size = np.ones(len(detected.boxes), bool)  # [D]
    if size_range is not None:
        counted &= _within(matches.object_areas, size_range)
        of_size = _within(matches.detected_areas, size_range)

    index = np.flatnonzero(detected.labels == label)
    index = index[np.argsort(-detected.scores[index], kind="stable")]
    best = matches.best[index]
    hit = (best >= 0) & (matches.iou[index] >= np.float32(iou_threshold))
    hit_counted = np.flatnonzero(hit)[counted[best[hit]]]
    true = np.zeros(len(index), bool)
    # `np.unique` gives the first occurrence of each object: its detection of highest score.
    true[hit_counted[np.unique(best[hit_counted], return_index=True)[1]]] = True
    false = ~hit & of_size[index]
    false[hit_counted] = ~true[hit_counted]
    return Decisions(index, true, false, int(counted.sum()))


def pr_curve(decisions: Decisions):
    """Recall and precision after each detection, [E] float64; recall is 0 without objects."""
    true = np.cumsum(decisions.true)
    false = np.cumsum(decisions.false)
    return true / max(decisions.num_objects, 1), true / np.maximum(true + false, 1)


def average_precision(recall, precision, rule: str = "area") -> float:
    """Average precision of a curve.

    Args:
      recall, precision: [E] as `pr_curve` gives them.
      rule: "area", under the envelope that decreases with recall (VOC from 2010 on), or "11points",
        the mean of the envelope at the recalls 0, .1, .. 1 (VOC 2007).
    Raises:
      ValueError: the rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}")
    # Best precision at this or a higher recall, and 0 at recalls that are never reached.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    if rule == "area":
        return float(np.sum(np.diff(recall, prepend=0) * envelope[:-1]))
    # In double precision, as in the reference: its fourth recall is 0.30000000000000004.
    return float(envelope[np.searchsorted(recall, np.arange(0, 1.001, 0.1))].mean())


def evaluate(
    ground_truth: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
    legacy_plus_one: bool = False,
    size_ranges: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """Mean average precision by both rules, and the results of each class.

    Args:
      ground_truth, predictions: lists of dicts, one per image; see `detlab.metrics.inputs`.
      class_names: sequence of C names.
      iou_threshold: see `decide`.
      legacy_plus_one: see `match`.
      size_ranges: sequence of (low, high) px that are also evaluated separately, see `decide`.
    Returns:
      dict of `mAP07` (the rule "11points") and `mAP12` ("area"), over the classes with objects,
      and `classes`: list of C dicts with `name`, `AP07`, `AP12`, `recall` and `precision` at the
      end of the curve, `num_objects` (counted ones) and `num_detections`.  A class without objects
      has 0 everywhere except in `num_detections`; the means are 0 if no class has objects.  `sizes`
      is a list of such dicts, one per range, with its `size_range`.
    Raises:
      ValueError: the inputs do not fit together.
    """
    matches = match(ground_truth, predictions, len(class_names), legacy_plus_one)

    def summarise(size_range):
        classes = []
        for label, name in enumerate(class_names):
            decisions = decide(matches, label, iou_threshold, size_range)
            recall, precision = pr_curve(decisions)
            classes.append(
                {
                    "name": name,
                    "AP07": average_precision(recall, precision, "11points"),
                    "AP12": average_precision(recall, precision, "area"),
                    "recall": float(recall[-1]) if len(recall) else 0.0,
                    "precision": float(precision[-1]) if len(precision) else 0.0,
                    "num_objects": decisions.num_objects,
                    "num_detections": len(decisions.index),
                }
            )
        present = [row for row in classes if row["num_objects"]]
        means = {
            f"m{key}": float(np.mean([row[key] for row in present])) if present else 0.0
            for key in ("AP07", "AP12")
        }
        return {**means, "classes": classes}

    sizes = [{"size_range": list(limits), **summarise(limits)} for limits in size_ranges]
    return {**summarise(None), "sizes": sizes}


def _areas(boxes, legacy_plus_one):
    """[...] float32 areas of [..., 4] boxes, 0 where a side is negative."""
    sides = boxes[..., 2:] - boxes[..., :2] + np.float32(legacy_plus_one)
    return np.prod(np.maximum(sides, 0), axis=-1)


def _within(areas, size_range):
    low, high = size_range
    return (areas >= low**2) & (areas < high**2)

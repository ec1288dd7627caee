"""Which detection finds which object, as COCO's evaluation decides it, for all images at once.

Within an image and class, each detection by descending score takes the free object that it overlaps
most.  An ignored object is taken only if no other is left, and makes the detection count neither
for nor against.  Since a detection yields only to those of higher scores, one match per detection
holds at every score threshold.  The decisions are those of pycocotools
(tests/metrics/test_precision.py), which does not give them away.

Letters for axes: D detections, M objects, P pairs, T IoU thresholds; all are over all images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detlab.metrics import inputs

MAX_DETECTIONS = 100  # of an image and class, as in COCO's figures
_BLOCK = 2_000_000  # pairs whose overlaps are computed at once


class Pairs(NamedTuple):
    """Detections and objects that overlap, of any classes, ordered by detection."""

    detection: np.ndarray  # [P] int
    object: np.ndarray  # [P] int
    iou: np.ndarray  # [P] float64; with a crowd object, intersection over the detection's area


def by_score(detected: inputs.Detected) -> tuple[inputs.Detected, np.ndarray]:
    """The detections that count, by image and descending score, and their ranks.

    Returns:
      (the `MAX_DETECTIONS` best of each image and class, [D] rank of each among those of its image
      and class, from 0).
    """
    order = np.lexsort((-detected.scores, detected.image))  # equal scores keep their order
    detected = inputs.Detected(*(column[order] for column in detected))
    groups = np.lexsort((detected.labels, detected.image))
    image, labels = detected.image[groups], detected.labels[groups]
    first = np.ones(len(groups), bool)
    first[1:] = (np.diff(image) != 0) | (np.diff(labels) != 0)
    position = np.arange(len(groups))
    rank = np.empty(len(groups), int)
    rank[groups] = position - np.maximum.accumulate(np.where(first, position, 0))
    keep = rank < MAX_DETECTIONS
    return inputs.Detected(*(column[keep] for column in detected)), rank[keep]


def overlaps(objects: inputs.Objects, detected: inputs.Detected, least: float) -> Pairs:
    """The pairs of an image that overlap by at least `least`, which is above 0."""
    first = np.searchsorted(objects.image, detected.image, "left")
    count = np.searchsorted(objects.image, detected.image, "right") - first  # [D]
    ends = np.concatenate([[0], np.cumsum(count)])
    parts, start = [Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))], 0
    while start < len(count):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + _BLOCK, "right")) - 1)
        detection = np.repeat(np.arange(start, stop), count[start:stop])
        within = np.arange(len(detection)) + ends[start] - ends[detection]
        found = first[detection] + within
        iou = _iou(detected.boxes, detection, objects.boxes, found, objects.ignore)
        keep = iou >= least
        parts.append(Pairs(detection[keep], found[keep], iou[keep]))
        start = stop
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def match(
    pairs: Pairs,
    objects: inputs.Objects,
    detected: inputs.Detected,
    thresholds: Sequence[float],
    ignore,
):
    """Matches within classes.

    Args:
      pairs: from `overlaps`, complete down to the smallest threshold.
      detected: from `by_score`.
      thresholds: T least IoUs.
      ignore: [M] bool: objects that make a detection count neither for nor against, such as those
        of other sizes, and all crowd objects.  A crowd object can be taken any number of times.
    Returns:
      [T, D] int, the object that each detection takes, -1 for none.
    """
    same = objects.labels[pairs.object] == detected.labels[pairs.detection]
    detection, found, iou = (column[same] for column in pairs)
    # Of equal overlaps the later object is taken, as in pycocotools.
    order = np.lexsort((-found, -iou, ignore[found], detection))
    detection, found, iou = detection[order], found[order], iou[order]
    crowd = objects.ignore.tolist()
    matched = np.full((len(thresholds), len(detected.labels)), -1)
    for row, threshold in zip(matched, thresholds, strict=True):
        enough = iou >= min(threshold, 1 - 1e-10)
        taken, result = set(), {}
        for d, m in zip(detection[enough].tolist(), found[enough].tolist(), strict=True):
            if d not in result and (m not in taken or crowd[m]):
                result[d] = m
                taken.add(m)
        row[list(result)] = list(result.values())
    return matched


def match_others(
    pairs: Pairs,
    objects: inputs.Objects,
    detected: inputs.Detected,
    threshold: float,
    free_detections,
    free_objects,
):
    """Matches left-over detections with left-over objects of other classes, one to one.

    Each detection by descending score takes the free object that it overlaps most.

    Args:
      pairs, detected: see `match`.
      threshold: least IoU.
      free_detections: [D] bool.
      free_objects: [M] bool.
    Returns:
      [D] int, the object that each detection takes, -1 for none.
    """
    detection, found, iou = other_pairs(pairs, objects, detected, threshold)
    matched = np.full(len(detected.labels), -1)
    taken = set()
    for d, m in zip(detection.tolist(), found.tolist(), strict=True):
        if free_detections[d] and matched[d] < 0 and free_objects[m] and m not in taken:
            matched[d] = m
            taken.add(m)
    return matched


def other_pairs(
    pairs: Pairs, objects: inputs.Objects, detected: inputs.Detected, threshold: float
) -> Pairs:
    """The pairs of different classes and at least this IoU, without ignored objects.

    Each detection's are by descending IoU; of equal ones the later object comes first.
    """
    other = objects.labels[pairs.object] != detected.labels[pairs.detection]
    other &= (pairs.iou >= threshold) & ~objects.ignore[pairs.object]
    found = Pairs(*(column[other] for column in pairs))
    order = np.lexsort((-found.object, -found.iou, found.detection))
    return Pairs(*(column[order] for column in found))


def areas(boxes):
    """[K] float64 areas of boxes [K, 4], px^2."""
    return np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)


def _iou(boxes, rows, gt_boxes, gt_rows, crowd):
    """[P] float64 IoU of boxes[rows] and gt_boxes[gt_rows], as pycocotools computes it."""
    left, top, right, bottom = boxes[rows].astype(np.float64).T
    gt_left, gt_top, gt_right, gt_bottom = gt_boxes[gt_rows].astype(np.float64).T
    width = np.minimum(right, gt_right) - np.maximum(left, gt_left)
    height = np.minimum(bottom, gt_bottom) - np.maximum(top, gt_top)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    area = (right - left) * (bottom - top)
    gt_area = (gt_right - gt_left) * (gt_bottom - gt_top)
    whole = np.where(crowd[gt_rows], area, area + gt_area - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)

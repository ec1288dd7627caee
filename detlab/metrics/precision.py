"""COCO's average precision from matches, also by class and size and for changed detections.

Letters for axes: D detections by descending score, C classes, R recalls, S sizes, T IoU thresholds.
`true` and `counted` are of detections; one that is not counted (it lies in a crowd, or has another
size) is as if it were not there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detlab.metrics import inputs, matching

RECALLS = np.linspace(0, 1, 101)
IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Areas from and to, px^2; both ends belong to a size, as in pycocotools.
SIZES = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}


def at_recalls(labels, true, counted, num_objects):
    """The precision that each class reaches at 101 recalls.

    Args:
      labels: [D] int in 0..C-1.
      true: [D] bool.
      counted: [D] bool.
      num_objects: [C] int.
    Returns:
      [C, R] float64: the best precision at this or a higher recall, 0 if it is never reached; NaN
      for a class without objects.  A row's mean is the class's AP.
    """
    labels, true = labels[counted], true[counted]
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(len(num_objects) + 1))
    true = true[order]
    precision = np.full((len(num_objects), len(RECALLS)), np.nan)
    for label, count in enumerate(num_objects):
        if not count:
            continue
        found = np.cumsum(true[ends[label] : ends[label + 1]])
        envelope = found / (np.arange(1, len(found) + 1) + np.spacing(1))
        envelope = np.maximum.accumulate(envelope[::-1])[::-1]
        first = np.searchsorted(found / count, RECALLS)
        precision[label] = np.append(envelope, 0)[first]
    return precision


def mean(values) -> float:
    """Mean over the values [...] that are not NaN; -1 if there are none."""
    values = np.asarray(values)[~np.isnan(values)]
    return float(values.mean()) if values.size else -1.0


class Table(NamedTuple):
    """Precision and recall of all sizes and IoU thresholds; NaN where a class has no objects."""

    precision: np.ndarray  # [S, T, C, R] float64
    recall: np.ndarray  # [S, T, C, 3]: with at most 1, 10 and 100 detections of an image and class
    matched: np.ndarray  # [T, D] the object each detection takes, all sizes; see `matching.match`


def table(
    pairs: matching.Pairs,
    objects: inputs.Objects,
    detected: inputs.Detected,
    rank,
    num_classes: int,
    sizes: Sequence[str] = tuple(SIZES),
) -> Table:
    """Matches at `IOUS` and what follows from them.

    Args:
      pairs, objects, detected: see `matching.match`.
      rank: [D] of the detections in their image and class, see `matching.by_score`.
      num_classes: C.
      sizes: keys of `SIZES`; the first is "all".
    Returns:
      Table.
    """
    best_first = np.argsort(-detected.scores, kind="stable")  # over all images
    labels, areas = detected.labels[best_first], matching.areas(detected.boxes)[best_first]
    precision = np.empty((len(sizes), len(IOUS), num_classes, len(RECALLS)))
    recall = np.empty((len(sizes), len(IOUS), num_classes, 3))
    kept = None
    for s, size in enumerate(sizes):
        low, high = SIZES[size]
        ignore = objects.ignore | (objects.area < low) | (objects.area > high)
        num_objects = np.bincount(objects.labels[~ignore], minlength=num_classes)
        matched = matching.match(pairs, objects, detected, IOUS, ignore)
        kept = matched if kept is None else kept
        of_size = (areas >= low) & (areas <= high)
        for t, row in enumerate(matched[:, best_first]):
            # `row` is -1 for a detection without object; the appended entry is for these.
            true = (row >= 0) & ~np.append(ignore, True)[row]
            counted = true | ((row < 0) & of_size)
            precision[s, t] = at_recalls(labels, true, counted, num_objects)
            for k, most in enumerate((1, 10, 100)):
                some = true & (rank[best_first] < most)
                found = np.bincount(labels[some], minlength=num_classes)
                recall[s, t, :, k] = np.where(
                    num_objects > 0, found / np.maximum(num_objects, 1), np.nan
                )
    return Table(precision, recall, kept)


def summary(found: Table) -> dict[str, float]:
    """COCO's 12 figures, under the names of `coco.SUMMARY`; -1 where there are no objects."""
    small, medium, large = (list(SIZES).index(size) for size in ("small", "medium", "large"))
    return {
        "AP": mean(found.precision[0]),
        "AP50": mean(found.precision[0, 0]),
        "AP75": mean(found.precision[0, 5]),
        "AP_small": mean(found.precision[small]),
        "AP_medium": mean(found.precision[medium]),
        "AP_large": mean(found.precision[large]),
        "AR1": mean(found.recall[0, ..., 0]),
        "AR10": mean(found.recall[0, ..., 1]),
        "AR100": mean(found.recall[0, ..., 2]),
        "AR_small": mean(found.recall[small, ..., 2]),
        "AR_medium": mean(found.recall[medium, ..., 2]),
        "AR_large": mean(found.recall[large, ..., 2]),
    }


def of_classes(found: Table) -> list[dict[str, float]]:
    """AP, AP50, AP75, AP_small, AP_medium, AP_large and AR100 of each class."""
    rows = []
    for label in range(found.precision.shape[2]):
        of = found.precision[:, :, label]  # [S, T, R]
        rows.append(
            {
                "AP": mean(of[0]),
                "AP50": mean(of[0, 0]),
                "AP75": mean(of[0, 5]),
                **{f"AP_{size}": mean(of[s]) for s, size in enumerate(SIZES) if s},
                "AR100": mean(found.recall[0, :, label, 2]),
            }
        )
    return rows

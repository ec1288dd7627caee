"""What a detector gets right and wrong above a score threshold, and whether scores are right.

Thresholds are the multiples of .005 from 0 to 1.  A detection is at or above `THRESHOLDS[k]` if and
only if its `step` is at least k, so tables of counts by step give the figures of all thresholds.

Letters for axes: D detections, M objects, C classes, K thresholds, I images.
"""

from typing import NamedTuple

import numpy as np

from detlab.metrics import inputs, matching

THRESHOLDS = np.arange(201) / 200
BINS = 15  # of scores, for calibration


def steps(scores):
    """The position in `THRESHOLDS` of the largest that each score reaches.

    Args:
      scores: [D].
    Returns:
      [D] int.
    """
    return np.clip(np.searchsorted(THRESHOLDS, scores, side="right") - 1, 0, len(THRESHOLDS) - 1)


class Counts(NamedTuple):
    """Numbers of each class at or above each threshold."""

    true: np.ndarray  # [C, K] int
    false: np.ndarray  # [C, K] int
    objects: np.ndarray  # [C] int


def count(labels, scores, true, counted, num_objects) -> Counts:
    """Counts true and false positives.

    Args:
      labels: [D] int in 0..C-1.
      scores: [D].
      true: [D] bool.
      counted: [D] bool; see `precision`.
      num_objects: [C] int.
    """
    shape = (len(num_objects), len(THRESHOLDS))
    cell = labels.astype(int) * shape[1] + steps(scores)

    def at_or_above(rows):
        found = np.bincount(cell[rows], minlength=shape[0] * shape[1]).reshape(shape)
        return found[:, ::-1].cumsum(axis=1)[:, ::-1]

    return Counts(at_or_above(true & counted), at_or_above(~true & counted), num_objects)


def rates(true, false, objects):
    """Precision, recall and F1 = 2 TP / (2 TP + FP + FN).

    Args:
      true, false, objects: [...] int; sums over classes give the figures of all classes.
    Returns:
      Three [...] float64; precision and F1 are 0 where there is nothing, recall 0 without objects.
    """
    precision = true / np.maximum(true + false, 1)
    recall = true / np.maximum(objects, 1)
    return precision, recall, 2 * true / np.maximum(true + false + objects, 1)


def best(counts: Counts) -> tuple[int, np.ndarray]:
    """Positions of the thresholds of the best F1: for all classes together, and [C] for each.

    Of equal F1s, the highest threshold.
    """
    last = len(THRESHOLDS) - 1
    _, _, together = rates(counts.true.sum(0), counts.false.sum(0), counts.objects.sum())
    _, _, each = rates(counts.true, counts.false, counts.objects[:, None])
    return int(last - together[::-1].argmax()), last - each[:, ::-1].argmax(axis=1)


def confusion(
    pairs: matching.Pairs,
    objects: inputs.Objects,
    detected: inputs.Detected,
    matched,
    threshold: float,
    iou: float,
    num_classes: int,
):
    """Which class each object was taken for, one to one, in two passes.

    First COCO's matches within each class, so the diagonal holds its true positives.  Then
    left-over detections take left-over objects of other classes.  What is left is background.
    Objects and detections in crowds are left out.

    Args:
      pairs, objects, detected: see `matching.match`.
      matched: [D] from `matching.match` at `iou`.
      threshold: least score.
      iou: least IoU of the second pass.
      num_classes: C.
    Returns:
      [C + 1, C + 1] int: row the object's class, column the detection's, last is background.  A
      row's sum is the number of objects of the class, a column's of its detections.
    """
    shown = detected.scores >= threshold
    true = shown & (matched >= 0)
    regular = true & ~np.append(objects.ignore, True)[matched]
    left = ~objects.ignore
    left[matched[regular]] = False
    others = matching.match_others(pairs, objects, detected, iou, shown & (matched < 0), left)
    mixed = others >= 0
    left[others[mixed]] = False
    alone = shown & (matched < 0) & ~mixed

    table = np.zeros((num_classes + 1, num_classes + 1), int)
    np.add.at(table, (objects.labels[matched[regular]], detected.labels[regular]), 1)
    np.add.at(table, (objects.labels[others[mixed]], detected.labels[mixed]), 1)
    np.add.at(table, (num_classes, detected.labels[alone]), 1)
    np.add.at(table, (objects.labels[left], num_classes), 1)
    return table


class Calibration(NamedTuple):
    """Of the detections in `BINS` equal intervals of score."""

    number: np.ndarray  # [BINS] int
    score: np.ndarray  # [BINS] mean score; 0 where there are none
    precision: np.ndarray  # [BINS] share of true positives at IoU .5
    iou: np.ndarray  # [BINS] mean IoU of the true positives; 0 where there are none
    error: float  # mean of |precision - score| over the detections; -1 without detections


def calibrate(scores, true, counted, iou) -> Calibration:
    """Compares scores with how often detections are right (D-ECE of Küppers et al., 2020).

    Args:
      scores: [D].
      true: [D] bool.
      counted: [D] bool.
      iou: [D] of each detection with its object.
    """
    scores, true, iou = scores[counted], true[counted], iou[counted]
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    number, found = np.bincount(bins, minlength=BINS), np.bincount(bins[true], minlength=BINS)
    score = np.bincount(bins, scores, BINS) / np.maximum(number, 1)
    precision = found / np.maximum(number, 1)
    overlap = np.bincount(bins[true], iou[true], BINS) / np.maximum(found, 1)
    error = np.sum(number * np.abs(precision - score)) / len(scores) if len(scores) else -1.0
    return Calibration(number, score, precision, overlap, float(error))

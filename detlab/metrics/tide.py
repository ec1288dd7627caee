"""Kinds of errors and what each costs in AP (TIDE, Bolya et al., arXiv:2008.08115).

A false positive has the first kind that fits, in this order: localisation, classification,
duplicate, background, both.  An object without a detection is missed unless a localisation or
classification error is about it.  dAP of a kind is by how much AP at IoU .5 would rise if all
errors of the kind were mended: a localisation or classification error becomes a true positive, or
vanishes if its object has a detection or a better error; the others vanish, and missed objects are
no longer asked for.

Different from the authors' package (docs/tools.md): COCO's AP, which leaves out classes without
objects; 100 detections of an image and class instead of an image; a detection in a crowd is no
error, so truth as predictions has none; negative differences are shown; a class of which all
objects are missed has an AP of 1, not 0, when these are no longer asked for; an object with errors
of two kinds is found when either kind is mended, not only that of the higher score.

Letters for axes: D detections, M objects, C classes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from detlab.metrics import inputs, matching, precision

IOU = 0.5  # from here on, a box is right
BACKGROUND = 0.1  # below, a box is about no object
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND_KIND, MISSED = range(len(KINDS))
# Not kinds of their own: all false positives, and all objects without a true positive.
SUMS = ("false_positive", "false_negative")


class Errors(NamedTuple):
    """The errors of all images."""

    kind: np.ndarray  # [D] int8 index into KINDS; -1: a true positive, or not counted
    target: np.ndarray  # [D] the object that the error is about; -1 for none
    iou: np.ndarray  # [D] float64 IoU with the object that is taken, or overlapped most; 0: none
    unfound: np.ndarray  # [M] bool: objects without a true positive
    missed: np.ndarray  # [M] bool: of these, those that no other error is about


def find(
    pairs: matching.Pairs, objects: inputs.Objects, detected: inputs.Detected, matched
) -> Errors:
    """The kind of each error.

    Args:
      pairs: all that overlap by at least `BACKGROUND`, see `matching.overlaps`.
      objects, detected: see `matching.match`.
      matched: [D] the object that each detection takes at `IOU`, -1 for none.
    Returns:
      Errors.
    """
    regular = ~objects.ignore[pairs.object]
    same = objects.labels[pairs.object] == detected.labels[pairs.detection]
    num = len(detected.labels)
    same_iou, same_object = _best(pairs, regular & same, num)
    other_iou, other_object = _best(pairs, regular & ~same, num)
    false = matched < 0
    kind = np.full(num, -1, np.int8)
    target = np.full(num, -1)
    # The last assignment counts, so the first kind of the order comes last.
    kind[false] = BOTH
    nearest = np.where(same_iou >= other_iou, same_object, other_object)
    target[false] = nearest[false]
    for is_kind, number, about in (
        (np.maximum(same_iou, other_iou) < BACKGROUND, BACKGROUND_KIND, np.full(num, -1)),
        (same_iou >= IOU, DUPLICATE, same_object),
        (other_iou >= IOU, CLASSIFICATION, other_object),
        ((same_iou >= BACKGROUND) & (same_iou < IOU), LOCALISATION, same_object),
    ):
        rows = false & is_kind
        kind[rows] = number
        target[rows] = about[rows]

    unfound = ~objects.ignore
    unfound[matched[matched >= 0]] = False
    missed = unfound.copy()
    missed[target[np.isin(kind, (CLASSIFICATION, LOCALISATION))]] = False
    iou = np.maximum(same_iou, other_iou)
    rows = np.flatnonzero(matched >= 0)
    taken = np.zeros(num)
    own = pairs.object == matched[pairs.detection]
    taken[pairs.detection[own]] = pairs.iou[own]
    iou[rows] = taken[rows]
    return Errors(kind, target, iou, unfound, missed)


def rises(
    errors: Errors,
    objects: inputs.Objects,
    detected: inputs.Detected,
    matched,
    num_classes: int,
    chosen_detections=None,
    chosen_objects=None,
) -> dict[str, np.ndarray]:
    """By how much mending each kind raises the AP of each class.

    Args:
      errors: from `find`.
      objects, detected: as given to `find`.
      matched: [D] as given to `find`.
      num_classes: C.
      chosen_detections: [D] bool: false positives to mend; None for all.
      chosen_objects: [M] bool: missed objects to mend; None for all.
    Returns:
      Name of `KINDS` or `SUMS` -> [C] float64; NaN for a class without objects.  "AP50" is the AP
      of each class as it is.
    """
    num_objects = np.bincount(objects.labels[~objects.ignore], minlength=num_classes)
    order = np.argsort(-detected.scores, kind="stable")
    crowd = np.append(objects.ignore, False)[matched]  # the appended entry is for -1
    true = (matched >= 0) & ~crowd
    chosen = np.ones(len(true), bool) if chosen_detections is None else chosen_detections

    def average(labels, true, kept, num_objects):
        curves = precision.at_recalls(labels[order], true[order], kept[order], num_objects)
        return curves.mean(axis=1)

    now = average(detected.labels, true, ~crowd, num_objects)
    found = {"AP50": now}
    for number, name in enumerate(KINDS[:MISSED]):
        rows = (errors.kind == number) & chosen
        labels, mended = detected.labels, true
        if number in (CLASSIFICATION, LOCALISATION):
            best = _best_of_target(errors, rows, detected.scores, len(objects.labels))
            labels, mended = labels.copy(), true.copy()
            labels[best] = objects.labels[errors.target[best]]
            mended[best] = True
        kept = ~crowd & (~rows | mended)
        found[name] = average(labels, mended, kept, num_objects) - now
    missing = {"missed": errors.missed, "false_negative": errors.unfound}
    for name, objects_left in missing.items():
        rows = objects_left if chosen_objects is None else objects_left & chosen_objects
        left = num_objects - np.bincount(objects.labels[rows], minlength=num_classes)
        # A class of which nothing is left to find counts as solved.
        mended = average(detected.labels, true, ~crowd, left)
        found[name] = np.nan_to_num(mended, nan=1.0) - now
    kept = ~crowd & (true | ~chosen)
    found["false_positive"] = average(detected.labels, true, kept, num_objects) - now
    return found


def size_of_errors(errors: Errors, objects: inputs.Objects, detected: inputs.Detected):
    """The area that decides an error's size, [D] px^2.

    It is the object's for localisation and classification errors, else the detection's.
    """
    areas = matching.areas(detected.boxes)
    about = np.isin(errors.kind, (CLASSIFICATION, LOCALISATION))
    return np.where(about, np.append(objects.area, 0)[errors.target], areas)


def counts(errors: Errors, chosen_detections, chosen_objects) -> Mapping[str, int]:
    """The number of errors of each kind, and of the sums, among some.

    Args:
      chosen_detections: [D] bool.
      chosen_objects: [M] bool.
    """
    kinds = np.bincount(errors.kind[(errors.kind >= 0) & chosen_detections], minlength=MISSED)
    found = dict(zip(KINDS[:MISSED], kinds.tolist(), strict=True))
    found["missed"] = int((errors.missed & chosen_objects).sum())
    found["false_positive"] = int(kinds.sum())
    found["false_negative"] = int((errors.unfound & chosen_objects).sum())
    return found


def _best(pairs, chosen, num):
    """The largest IoU [num] of each detection among chosen pairs, and its object, -1 for none."""
    detection, found, iou = (column[chosen] for column in pairs)
    order = np.lexsort((iou, detection))
    best_iou, best_object = np.zeros(num), np.full(num, -1)
    # Of repeated indices, the last value is kept.
    best_iou[detection[order]] = iou[order]
    best_object[detection[order]] = found[order]
    return best_iou, best_object


def _best_of_target(errors, rows, scores, num_objects):
    """Of these errors, for each object without a true positive, the one of highest score."""
    rows = np.flatnonzero(rows)
    rows = rows[errors.unfound[errors.target[rows]]]
    rows = rows[np.argsort(-scores[rows], kind="stable")][::-1]
    best = np.full(num_objects, -1)
    best[errors.target[rows]] = rows
    return best[best >= 0]

"""Which images are wrong, and why: everything that follows from predictions and truth.

`analyse` matches detections with objects (`matching`), and computes COCO's figures (`precision`),
kinds of errors and what they cost (`tide`), and the figures of every score threshold
(`thresholds`).  `results` says all of it in plain values.

Letters for axes: D detections, M objects, C classes, I images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.metrics import inputs, matching, precision, thresholds, tide


class Analysis(NamedTuple):
    """Arrays and figures of predictions on annotated images."""

    image_ids: list  # I
    class_names: tuple[str, ...]  # C
    objects: inputs.Objects  # M
    detected: inputs.Detected  # D, by image and descending score
    left_out: int  # detections beyond `matching.MAX_DETECTIONS` of an image and class
    pairs: matching.Pairs
    table: precision.Table
    matched: np.ndarray  # [D] object at IoU .5, -1 for none
    true: np.ndarray  # [D] bool at IoU .5
    counted: np.ndarray  # [D] bool: not in a crowd
    errors: tide.Errors
    counts: thresholds.Counts


def analyse(
    ground_truth: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    class_names: Sequence[str],
) -> Analysis:
    """Matches detections with objects and names each error.

    Args:
      ground_truth, predictions: lists of dicts, one per image; see `detlab.metrics.inputs`.
      class_names: sequence of C names.
    Returns:
      Analysis.
    Raises:
      ValueError: the inputs do not fit together; see `inputs.flatten`.
    """
    objects, given = inputs.flatten(ground_truth, predictions, len(class_names))
    detected, rank = matching.by_score(given)
    pairs = matching.overlaps(objects, detected, tide.BACKGROUND)
    table = precision.table(pairs, objects, detected, rank, len(class_names))
    matched = table.matched[precision.IOUS.index(tide.IOU)]
    true = (matched >= 0) & ~np.append(objects.ignore, True)[matched]
    counted = true | (matched < 0)
    num_objects = np.bincount(objects.labels[~objects.ignore], minlength=len(class_names))
    return Analysis(
        [image["image_id"] for image in ground_truth],
        tuple(class_names),
        objects,
        detected,
        len(given.labels) - len(detected.labels),
        pairs,
        table,
        matched,
        true,
        counted,
        tide.find(pairs, objects, detected, matched),
        thresholds.count(detected.labels, detected.scores, true, counted, num_objects),
    )


def best_threshold(analysis: Analysis) -> float:
    """The score threshold of the best F1 of all classes together."""
    return float(thresholds.THRESHOLDS[thresholds.best(analysis.counts)[0]])


def results(analysis: Analysis, threshold: float | None = None) -> dict[str, Any]:
    """Everything in plain values, as JSON can hold it; -1 where there are no objects.

    Args:
      threshold: score from which a detection counts in the confusion matrix and the list of images;
        None for that of the best F1.
    Returns:
      dict of `figures` (COCO's 12), `classes`, `kinds` by size, `by_threshold`,
      `precision_recall`, `threshold`, `confusion`, `calibration`, `images`, and numbers.
    """
    threshold = best_threshold(analysis) if threshold is None else threshold
    kinds, classes = _kinds(analysis)
    return {
        "figures": precision.summary(analysis.table),
        "num_images": len(analysis.image_ids),
        "num_objects": int(analysis.counts.objects.sum()),
        "num_ignored": int(analysis.objects.ignore.sum()),
        "num_detections": len(analysis.detected.labels),
        "left_out": analysis.left_out,
        "threshold": threshold,
        "at_threshold": _at(analysis, threshold),
        "kinds": kinds,
        "classes": classes,
        "by_threshold": by_threshold(analysis),
        "precision_recall": precision_recall(analysis),
        "confusion": {
            "iou": tide.IOU,
            "names": [*analysis.class_names, "background"],
            "rows": "objects",
            "columns": "detections",
            "counts": confusion(analysis, threshold).tolist(),
        },
        "calibration": calibration(analysis),
        "images": images(analysis, threshold),
    }


def confusion(analysis: Analysis, threshold: float, iou: float = tide.IOU):
    """[C + 1, C + 1] int, see `thresholds.confusion`; `iou` is one of `precision.IOUS`."""
    position = int(np.argmin(np.abs(np.array(precision.IOUS) - iou)))
    return thresholds.confusion(
        analysis.pairs,
        analysis.objects,
        analysis.detected,
        analysis.table.matched[position],
        threshold,
        iou,
        len(analysis.class_names),
    )


def by_threshold(analysis: Analysis) -> dict[str, list]:
    """True and false positives, precision, recall and F1 of all classes at each threshold."""
    true, false = analysis.counts.true.sum(0), analysis.counts.false.sum(0)
    rates = thresholds.rates(true, false, analysis.counts.objects.sum())
    columns = {"threshold": thresholds.THRESHOLDS, "true": true, "false": false}
    columns |= dict(zip(("precision", "recall", "f1"), rates, strict=True))
    return {name: _digits(values) for name, values in columns.items()}


def precision_recall(analysis: Analysis) -> dict[str, list]:
    """Mean over classes of the precision at 101 recalls, at IoU .5, .75 and over .5:.95."""
    of_all = analysis.table.precision[0]  # [10 IoUs, C, 101]
    present = ~np.isnan(of_all[0, :, 0])
    curves = of_all[:, present].mean(axis=1) if present.any() else np.zeros((10, 101))
    return {
        "recall": _digits(precision.RECALLS),
        "0.5": _digits(curves[0]),
        "0.75": _digits(curves[5]),
        "0.5:0.95": _digits(curves.mean(axis=0)),
    }


def calibration(analysis: Analysis) -> dict[str, Any]:
    """How often detections of a score are right, at IoU .5; see `thresholds.calibrate`."""
    found = thresholds.calibrate(
        analysis.detected.scores, analysis.true, analysis.counted, analysis.errors.iou
    )
    return {
        **{name: _digits(getattr(found, name)) for name in found._fields[:-1]},
        "error": found.error,
    }


def images(analysis: Analysis, threshold: float) -> list[dict[str, Any]]:
    """What is right and wrong in each image from a score on, those with the lowest F1 first.

    An image's worst error is its false positive of highest score, else its largest object without a
    detection, else None.
    """
    objects, detected = analysis.objects, analysis.detected
    number = len(analysis.image_ids)
    shown = detected.scores >= threshold
    true = np.bincount(detected.image[shown & analysis.true], minlength=number)
    false = shown & ~analysis.true & analysis.counted
    num_false = np.bincount(detected.image[false], minlength=number)
    unfound = unfound_at(analysis, threshold)
    num_unfound = np.bincount(objects.image[unfound], minlength=number)
    _, _, f1 = thresholds.rates(true, num_false, true + num_unfound)
    worst = [None] * number
    rows = np.flatnonzero(unfound)
    for m in rows[np.argsort(objects.area[rows], kind="stable")]:
        name = analysis.class_names[objects.labels[m]]
        worst[objects.image[m]] = {"kind": "false_negative", "class": name}
    for d in np.flatnonzero(false)[::-1]:
        worst[detected.image[d]] = {
            "kind": tide.KINDS[analysis.errors.kind[d]],
            "class": analysis.class_names[detected.labels[d]],
            "score": round(float(detected.scores[d]), 4),
        }
    rows = [
        {
            "image_id": analysis.image_ids[i],
            "true_positives": int(true[i]),
            "false_positives": int(num_false[i]),
            "false_negatives": int(num_unfound[i]),
            # An image without objects and detections is right.
            "f1": float(f1[i]) if true[i] + num_false[i] + num_unfound[i] else 1.0,
            "worst": worst[i],
        }
        for i in range(number)
    ]
    return sorted(rows, key=lambda row: (row["f1"], -row["false_positives"]))


def unfound_at(analysis: Analysis, threshold: float):
    """[M] bool: the objects without a true positive of at least this score."""
    unfound = ~analysis.objects.ignore
    unfound[analysis.matched[analysis.true & (analysis.detected.scores >= threshold)]] = False
    return unfound


def _at(analysis, threshold):
    """Counts and rates of all classes from a score on."""
    shown = analysis.detected.scores >= threshold
    true = int((shown & analysis.true).sum())
    false = int((shown & ~analysis.true & analysis.counted).sum())
    num_objects = int(analysis.counts.objects.sum())
    rates = thresholds.rates(true, false, num_objects)
    return {
        "true_positives": true,
        "false_positives": false,
        "false_negatives": num_objects - true,
        "in_crowds": int((shown & ~analysis.counted).sum()),
        **dict(zip(("precision", "recall", "f1"), map(float, rates), strict=True)),
    }


def _kinds(analysis):
    """(dAP and counts of each kind, for all and by size; one dict per class)."""
    objects, detected, errors = analysis.objects, analysis.detected, analysis.errors
    num_classes = len(analysis.class_names)
    given = (errors, objects, detected, analysis.matched, num_classes)
    rises = tide.rises(*given)
    by_size = {}
    areas = tide.size_of_errors(errors, objects, detected)
    for size, (low, high) in precision.SIZES.items():
        chosen = (_within(areas, low, high), _within(objects.area, low, high))
        of_size = rises if size == "all" else tide.rises(*given, *chosen)
        numbers = tide.counts(errors, *chosen)
        by_size[size] = {
            kind: {"dAP": precision.mean(of_size[kind]), "count": number}
            for kind, number in numbers.items()
        }
    best = thresholds.THRESHOLDS[thresholds.best(analysis.counts)[1]]
    classes = []
    for label, (name, row) in enumerate(
        zip(analysis.class_names, precision.of_classes(analysis.table), strict=True)
    ):
        of_class = detected.labels == label
        at_best = int(thresholds.steps(best[label : label + 1])[0])
        counts = analysis.counts
        rates = thresholds.rates(
            counts.true[label, at_best], counts.false[label, at_best], counts.objects[label]
        )
        calibrated = thresholds.calibrate(
            detected.scores[of_class],
            analysis.true[of_class],
            analysis.counted[of_class],
            errors.iou[of_class],
        )
        has_objects = counts.objects[label] > 0
        classes.append(
            {
                "name": name,
                "num_objects": int(counts.objects[label]),
                "num_detections": int(of_class.sum()),
                **row,
                "best_threshold": float(best[label]),
                **dict(zip(("precision", "recall", "f1"), map(float, rates), strict=True)),
                "dAP": {
                    kind: float(rises[kind][label]) if has_objects else -1.0
                    for kind in (*tide.KINDS, *tide.SUMS)
                },
                "calibration_error": calibrated.error,
            }
        )
    return by_size, classes


def _within(areas, low, high):
    # Unlike COCO's figures, where 32^2 belongs to two sizes, each error has one size.
    return (areas >= low) & (areas < high) if low else areas < high


def _digits(values) -> list:
    values = np.asarray(values)
    return values.tolist() if values.dtype.kind in "iu" else np.round(values, 6).tolist()

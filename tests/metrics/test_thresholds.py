"""Counts at every score threshold, the confusion matrix and calibration."""

import annotated
import numpy as np
import pytest

from detlab.metrics import errors, precision, thresholds

CAT, DOG = annotated.CAT, annotated.DOG


@pytest.mark.parametrize("k", [0, 1, 57, 58, 60, 140, 199, 200])
def test_a_score_reaches_a_threshold_if_its_step_does(k):
    threshold = k / 200
    near = [threshold, np.nextafter(threshold, 0), np.nextafter(threshold, 1), np.float32(0.7)]
    scores = np.clip(np.array(near, float), 0, 1)
    assert (thresholds.steps(scores) >= k).tolist() == (scores >= threshold).tolist()


def test_counts_and_rates_of_ten_boxes():
    analysis = errors.analyse(*annotated.ten_boxes(), annotated.NAMES)
    k = 140  # the threshold .7, which .70 as float32 does not reach
    assert analysis.counts.true[:, k].tolist() == [1, 0]
    assert analysis.counts.false[:, k].tolist() == [4, 0]
    assert analysis.counts.true[:, 139].tolist() == [2, 0]
    assert analysis.counts.objects.tolist() == [4, 2]
    found = thresholds.rates(analysis.counts.true[0, k], analysis.counts.false[0, k], 4)
    assert found == pytest.approx((1 / 5, 1 / 4, 2 / 9))


def test_the_best_threshold_is_the_highest_of_the_best_f1():
    truths = [annotated.truth(0, [annotated.square(0), annotated.square(200)], [CAT, CAT])]
    rows = [(0.9, CAT, annotated.square(0)), (0.4, CAT, annotated.square(200))]
    rows += [(0.3, CAT, annotated.square(400)), (0.8, DOG, annotated.square(400))]
    analysis = errors.analyse(truths, [annotated.prediction(0, rows)], annotated.NAMES)
    assert errors.best_threshold(analysis) == 0.4  # F1 2/3 from .9 on (1 of 2), 4/5 from .4 on
    _, of_classes = thresholds.best(analysis.counts)
    assert of_classes.tolist() == [80, 200]  # the dog has no objects: 0 everywhere


def test_the_matrix_of_ten_boxes_is_one_to_one():
    analysis = errors.analyse(*annotated.ten_boxes(), annotated.NAMES)
    # The cat at .75 takes the dog; the dog at .50 finds its cat taken, so it is background.
    assert errors.confusion(analysis, 0).tolist() == [[2, 0, 2], [1, 1, 0], [4, 2, 0]]
    assert errors.confusion(analysis, 0.72).tolist() == [[1, 0, 3], [1, 0, 1], [3, 0, 0]]


def test_a_box_over_two_objects_counts_once():
    boxes = [annotated.square(0), annotated.square(10), annotated.square(20)]
    truths = [annotated.truth(0, boxes, [CAT, DOG, DOG])]
    predictions = [annotated.prediction(0, [(0.9, CAT, annotated.square(12))])]
    counts = errors.confusion(errors.analyse(truths, predictions, annotated.NAMES), 0)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]
    # Without the cat, it is one dog, and the other is missed.
    truths = [annotated.truth(0, boxes[1:], [DOG, DOG])]
    counts = errors.confusion(errors.analyse(truths, predictions, annotated.NAMES), 0)
    assert counts.tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("threshold", [0, 0.3, 0.62])
def test_rows_add_up_to_objects_and_columns_to_detections(threshold, iou):
    truths, predictions = annotated.random_scene(seed=6, crowds=0.2)
    analysis = errors.analyse(truths, predictions, list("abcd"))
    counts = errors.confusion(analysis, threshold, iou)
    assert counts[:4].sum(axis=1).tolist() == analysis.counts.objects.tolist()
    matched = analysis.table.matched[precision.IOUS.index(iou)]
    in_crowd = (matched >= 0) & np.append(analysis.objects.ignore, False)[matched]
    shown = (analysis.detected.scores >= threshold) & ~in_crowd
    labels = analysis.detected.labels[shown]
    assert counts[:, :4].sum(axis=0).tolist() == np.bincount(labels, minlength=4).tolist()
    if iou == 0.5:
        at = errors.results(analysis, threshold)["at_threshold"]
        assert at["true_positives"] == np.trace(counts[:4, :4])
        assert at["precision"] == pytest.approx(at["true_positives"] / counts[:, :4].sum())
        assert at["in_crowds"] > 0 or threshold


def test_calibration_of_scores_that_are_right_half_of_the_time():
    scores = np.array([0.5, 0.5, 0.5, 0.5, 0.99, 0.99])
    true = np.array([True, True, False, False, True, False])
    counted = np.array([True] * 5 + [False])
    iou = np.array([0.6, 0.8, 0.3, 0, 0.9, 0])
    found = thresholds.calibrate(scores, true, counted, iou)
    assert found.number.tolist() == [0] * 7 + [4] + [0] * 6 + [1]
    assert found.precision[7] == 0.5 and found.iou[7] == pytest.approx(0.7)
    assert found.error == pytest.approx((4 * 0 + 1 * 0.01) / 5)

"""Matching and average precision against pycocotools, which decides the same."""

import annotated
import numpy as np
import pytest

from detlab.metrics import coco, errors, inputs, matching, precision


@pytest.mark.parametrize("seed, crowds", [(0, 0.0), (1, 0.2), (2, 0.5)])
def test_all_figures_equal_those_of_pycocotools(seed, crowds):
    truths, predictions = annotated.random_scene(seed=seed, crowds=crowds, num_classes=5)
    names = ["a", "b", "c", "d", "e", "of no object"]
    expected = coco.evaluate(truths, predictions, names)
    analysis = errors.analyse(truths, predictions, names)
    figures = precision.summary(analysis.table)
    assert figures == pytest.approx({key: expected[key] for key in coco.SUMMARY}, abs=1e-12)
    assert 0.05 < figures["AP"] < 0.95 and figures["AP_small"] != figures["AP_large"]
    for row, other in zip(precision.of_classes(analysis.table), expected["classes"], strict=True):
        for key in ("AP", "AP50", "AP75", "AR100"):
            assert row[key] == pytest.approx(other[key], abs=1e-12)
    assert precision.of_classes(analysis.table)[5]["AP"] == -1


def test_the_mean_of_the_classes_sizes_is_the_figure_of_the_size():
    truths, predictions = annotated.random_scene(seed=3)
    table = errors.analyse(truths, predictions, list("abcd")).table
    rows = precision.of_classes(table)
    for size in ("small", "medium", "large"):
        values = [row[f"AP_{size}"] for row in rows if row[f"AP_{size}"] >= 0]
        assert precision.summary(table)[f"AP_{size}"] == pytest.approx(np.mean(values))


def test_of_300_detections_the_100_best_of_each_class_count():
    rng = np.random.default_rng(0)
    truths = [annotated.truth(0, [annotated.square(0)], [annotated.CAT])]
    scores = rng.permutation(300) / 300
    rows = [(score, annotated.CAT, annotated.square(500)) for score in scores]
    rows += [(0.1, annotated.DOG, annotated.square(0))]
    rows[int(np.argsort(-scores)[100])] = (np.sort(scores)[-101], 0, annotated.square(0))
    predictions = [annotated.prediction(0, rows)]
    analysis = errors.analyse(truths, predictions, annotated.NAMES)
    assert analysis.left_out == 200 and len(analysis.detected.labels) == 101
    expected = coco.evaluate(truths, predictions, annotated.NAMES)["AP"]
    assert precision.summary(analysis.table)["AP"] == expected == 0  # the 101st would be right


def test_pairs_are_found_in_blocks_as_at_once(monkeypatch):
    truths, predictions = annotated.random_scene(seed=4)
    objects, detected = inputs.flatten(truths, predictions, 4)
    detected, _ = matching.by_score(detected)
    whole = matching.overlaps(objects, detected, 0.1)
    assert len(whole.iou) > 50
    monkeypatch.setattr(matching, "_BLOCK", 3)
    for column, other in zip(matching.overlaps(objects, detected, 0.1), whole, strict=True):
        np.testing.assert_array_equal(column, other)


def test_a_regular_object_is_taken_before_a_crowd_that_is_overlapped_more():
    boxes = [annotated.square(0), [0, 0, 100, 60]]
    truths = [annotated.truth(0, boxes, [0, 0], [True, False])]
    predictions = [annotated.prediction(0, [(0.9, 0, boxes[0]), (0.8, 0, boxes[0])])]
    analysis = errors.analyse(truths, predictions, ["cat"])
    assert analysis.matched.tolist() == [1, 0]
    assert analysis.true.tolist() == [True, False] and analysis.counted.tolist() == [True, False]

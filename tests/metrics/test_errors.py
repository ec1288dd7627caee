"""The analysis as plain values: sizes, the list of images, curves."""

import json

import annotated
import numpy as np
import pytest

from detlab.metrics import errors

CAT, DOG = annotated.CAT, annotated.DOG


def test_the_list_of_images_has_counts_worst_errors_and_the_lowest_f1_first():
    truths, predictions = annotated.ten_boxes()
    truths += [annotated.truth("empty", [], []), annotated.truth("lost", [[0, 0, 9, 9]], [DOG])]
    analysis = errors.analyse(truths, predictions, annotated.NAMES)
    rows = {row.pop("image_id"): row for row in errors.images(analysis, 0.6)}
    assert list(rows) == ["lost", "a", "b", "empty"]
    assert rows["a"] == {
        "true_positives": 2,
        "false_positives": 4,
        "false_negatives": 2,
        "f1": 4 / (4 + 4 + 2),
        "worst": {"kind": "duplicate", "class": "cat", "score": 0.9},
    }
    assert rows["b"]["worst"] == {"kind": "both", "class": "dog", "score": 0.65}
    assert rows["lost"]["worst"] == {"kind": "false_negative", "class": "dog"}
    assert rows["empty"]["f1"] == 1 and rows["empty"]["worst"] is None


def test_each_error_has_one_size_and_costs_of_sizes_are_about_that_size():
    boxes = [annotated.square(0, side=20), annotated.square(100, side=50), annotated.square(200)]
    truths = [annotated.truth(0, boxes, [CAT, CAT, CAT])]
    predictions = [annotated.prediction(0, [(0.9, CAT, annotated.square(390, side=20))])]
    kinds = errors.results(errors.analyse(truths, predictions, ["cat"]))["kinds"]
    for kind, sizes in (("background", [1, 0, 0]), ("missed", [1, 1, 1])):
        counted = [kinds[size][kind]["count"] for size in ("small", "medium", "large")]
        assert counted == sizes and kinds["all"][kind]["count"] == sum(sizes)
    truths, predictions = annotated.random_scene(seed=7)
    kinds = errors.results(errors.analyse(truths, predictions, list("abcd")))["kinds"]
    for kind, row in kinds["all"].items():
        assert (
            sum(kinds[size][kind]["count"] for size in ("small", "medium", "large"))
            == (row["count"])
        )
        assert row["dAP"] >= max(kinds[s][kind]["dAP"] for s in ("small", "medium", "large")) - 1e-9


def test_results_are_json_and_rates_at_the_threshold_stand_in_the_curve():
    truths, predictions = annotated.random_scene(seed=8)
    results = errors.results(errors.analyse(truths, predictions, list("abcd")))
    assert json.loads(json.dumps(results)) == results
    k = round(results["threshold"] * 200)
    for name in ("precision", "recall", "f1"):
        at = results["at_threshold"][name]
        assert results["by_threshold"][name][k] == pytest.approx(at, abs=1e-6)
    assert results["by_threshold"]["f1"][k] == max(results["by_threshold"]["f1"])
    curve = results["precision_recall"]["0.5:0.95"]
    assert np.mean(curve) == pytest.approx(results["figures"]["AP"], abs=1e-6)


@pytest.mark.parametrize("truths", [[], [annotated.truth(0, [], [])]])
def test_without_images_or_objects_there_are_no_figures_and_no_failure(truths):
    predictions = [annotated.prediction(0, [(0.5, CAT, annotated.square(0))])] if truths else []
    results = errors.results(errors.analyse(truths, predictions, annotated.NAMES))
    assert set(results["figures"].values()) == {-1.0}
    assert results["kinds"]["all"]["missed"] == {"dAP": -1.0, "count": 0}


def test_predictions_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="the ground truth has no such image"):
        errors.analyse([], [annotated.prediction(1, [])], ["cat"])

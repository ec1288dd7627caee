"""The tolerances of docs/parity.md, by hand."""

import numpy as np
import pytest

from benchmarks.parity import checks
from detlab import types


def test_a_map_may_be_off_by_1e_4_of_its_largest_value():
    theirs = np.array([0.0, -20.0])
    assert checks.array_map("m", theirs + [0.0019, 0.0], theirs).passed
    assert not checks.array_map("m", theirs + [0.0021, 0.0], theirs).passed


def test_no_decision_may_differ():
    line = checks.decision("d", np.array([1, 0, -1]), np.array([1, -1, 0]))
    assert (line.error, line.passed) == (2.0, False)


def test_a_figure_may_be_off_by_1e_3():
    assert checks.figure("f", 2.0019, 2.0).passed
    assert not checks.figure("f", 2.0021, 2.0).passed
    assert not checks.figure("f", 2e-6, 0.0).passed


def test_a_loss_may_be_off_by_1e_5_and_ten_times_what_the_reference_drifts():
    assert checks.loss("l", 2.000019, 2.0, drift=0.0).passed
    assert not checks.loss("l", 2.000021, 2.0, drift=0.0).passed
    assert not checks.loss("l", 2e-8, 0.0, drift=0.0).passed
    line = checks.loss("l", 2.0021, 2.0, drift=1.1e-4)
    assert line.passed and "drift" in line.note
    assert not checks.loss("l", 2.0023, 2.0, drift=1.1e-4).passed
    assert not checks.loss("l", 2.0, 2.0, drift=9e-7).note


def test_nan_misses_everything():
    nan = np.full(2, np.nan)
    assert not checks.array_map("m", nan, np.ones(2)).passed
    assert not checks.target("t", nan, np.ones(2)).passed
    assert not checks.figure("f", np.nan, 1.0).passed
    assert not checks.loss("l", np.nan, 1.0, drift=0.0).passed
    recorded = checks.Gradient(1.0, 1.0, 0.1, 0.1, 0.1)
    assert not any(line.passed for line in checks.gradient("g", nan, np.ones(2), recorded, 1.0))
    found = detections([[0, 0, 9, 9]], [np.nan], [1])
    lines = checks.detections([found], [detections([[0, 0, 9, 9]], [0.5], [1])])
    assert missed(lines) == ["detections scores"]


WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
GRADIENT = np.array([[0.5, -1.0], [2.0, 0.0]], np.float32)


def gradient_lines(mine, drift=(0.0, 0.0, 0.0), theirs=GRADIENT, largest=0.0):
    norm, dot = float(np.linalg.norm(theirs)), float((theirs * WEIGHT).sum())
    return checks.gradient("g", mine, WEIGHT, checks.Gradient(norm, dot, *drift), largest)


def passed(lines):
    return [line.passed for line in lines]


def test_a_gradient_of_the_wrong_sign_or_layout_has_the_norm_and_not_the_dot():
    assert passed(gradient_lines(GRADIENT)) == [True, True]
    for wrong in (-GRADIENT, GRADIENT.T):
        assert passed(gradient_lines(wrong)) == [True, False]


def test_a_gradient_may_be_off_by_2e_3_of_its_norm():
    norm, dot = np.linalg.norm(GRADIENT), float((GRADIENT * WEIGHT).sum())
    lines = gradient_lines(1.0019 * GRADIENT)
    assert lines[0].passed
    assert lines[0].tolerance == pytest.approx(2e-3 * norm)
    spread = 5 * np.linalg.norm(WEIGHT) / 2  # of four elements
    assert lines[1].tolerance == pytest.approx(1e-3 * dot + spread * 2e-3 * norm)
    assert not any(line.note for line in lines)
    assert not gradient_lines(1.0021 * GRADIENT)[0].passed


def test_a_vanishing_gradient_is_measured_by_the_largest_of_the_case():
    theirs, mine = 0 * GRADIENT, np.float32([[9e-7, 0], [0, 0]])
    assert gradient_lines(mine, theirs=theirs, largest=1.0)[0].passed
    assert not gradient_lines(1.2 * mine, theirs=theirs, largest=1.0)[0].passed


@pytest.mark.parametrize("drift", [(0.01, 0.0, 0.0), (0.0, 0.0, 0.01)])
def test_a_gradient_may_be_three_times_as_far_off_as_the_reference_drifted(drift):
    norm, dot = np.linalg.norm(GRADIENT), float((GRADIENT * WEIGHT).sum())
    bound = 2e-3 * norm + 0.03
    lines = gradient_lines((1 + 0.99 * bound / norm) * GRADIENT, drift)
    assert lines[0].passed and lines[0].note == "mostly the drift of the case"
    assert lines[0].tolerance == pytest.approx(bound)
    spread = 5 * np.linalg.norm(WEIGHT) / 2
    assert lines[1].tolerance == pytest.approx(1e-3 * dot + spread * bound)
    assert not gradient_lines((1 + 1.01 * bound / norm) * GRADIENT, drift)[0].passed


def test_a_dot_may_be_three_times_as_far_off_as_the_reference_drifted():
    calm, moved = gradient_lines(GRADIENT)[1], gradient_lines(GRADIENT, (0.0, 0.5, 0.0))[1]
    assert moved.tolerance == pytest.approx(calm.tolerance + 1.5)
    assert moved.note and not calm.note


def detections(boxes, scores, labels):
    count = len(scores)
    boxes = np.float32(boxes).reshape(count, 4)
    return types.Detections(boxes, np.float32(scores), np.int32(labels), np.ones(count, bool))


def missed(lines):
    return [line.quantity for line in lines if not line.passed]


A, B = [0, 0, 9, 9], [5, 5, 20, 20]
THEIRS = detections([A, B], [0.9, 0.89995], [1, 1])


@pytest.mark.parametrize(
    "mine, quantities",
    [
        (detections([B, A], [0.9, 0.89995], [1, 1]), []),  # nearly the same score: may swap places
        (detections([A, B], [0.9, 0.8997], [1, 1]), ["detections scores"]),
        (detections([A, [5, 5, 20, 20.2]], [0.9, 0.89995], [1, 1]), ["detections boxes"]),
        (detections([A, B], [0.9, 0.89995], [1, 0]), ["detections labels"]),
        (detections([A], [0.9], [1]), ["detections count"]),
        (detections([], [], []), ["detections count"]),
    ],
)
def test_detections_agree_in_number_boxes_scores_and_labels(mine, quantities):
    assert missed(checks.detections([mine], [THEIRS])) == quantities


def test_the_drift_of_a_case_excuses_boxes_and_says_so():
    mine = detections([A, [5, 5, 20, 20.2]], [0.9, 0.89995], [1, 1])
    lines = checks.detections([mine], [THEIRS], drift=0.02)
    assert not missed(lines)
    assert "drift" in lines[1].note


def test_the_worst_image_counts():
    none = detections([], [], [])
    lines = checks.detections([THEIRS, none], [THEIRS, THEIRS])
    assert lines[0].error == 2.0

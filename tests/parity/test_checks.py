"""The tolerances of the fixtures' README, by hand."""

import numpy as np
import pytest

from benchmarks import parity_checks as checks
from detlab import types


def test_a_map_may_be_off_by_1e_4_of_its_largest_value():
    theirs = np.array([0.0, -20.0])
    assert checks.array_map("m", theirs + [0.0019, 0.0], theirs).passed
    assert not checks.array_map("m", theirs + [0.0021, 0.0], theirs).passed


def test_no_decision_may_differ():
    line = checks.decision("d", np.array([1, 0, -1]), np.array([1, -1, 0]))
    assert (line.error, line.passed) == (2.0, False)


def test_a_loss_may_be_off_by_1e_3_or_by_what_the_reference_itself_drifts():
    assert checks.loss("l", 2.0019, 2.0).passed
    assert not checks.loss("l", 2.0021, 2.0).passed
    assert not checks.loss("l", 2e-6, 0.0).passed
    line = checks.loss("l", 2.0021, 2.0, drift=0.01)
    assert line.passed and "drift" in line.note
    assert checks.loss("l", 2.0, 2.0, drift=1e-7).tolerance == pytest.approx(2e-3, rel=1e-3)


def test_nan_misses_everything():
    nan = np.full(2, np.nan)
    assert not checks.array_map("m", nan, np.ones(2)).passed
    assert not checks.target("t", nan, np.ones(2)).passed
    assert not checks.loss("l", np.nan, 1.0).passed
    assert not any(line.passed for line in checks.gradient("g", nan, np.ones(2), 1.0, 1.0, 1.0))
    found = detections([[0, 0, 9, 9]], [np.nan], [1])
    lines = checks.detections([found], [detections([[0, 0, 9, 9]], [0.5], [1])])
    assert missed(lines) == ["detections scores"]


def test_a_gradient_of_the_wrong_sign_or_layout_has_the_norm_and_not_the_dot():
    weight = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    theirs = np.array([[0.5, -1.0], [2.0, 0.0]], np.float32)
    norm, dot = float(np.linalg.norm(theirs)), float((theirs * weight).sum())
    for mine, passed in ((theirs, True), (-theirs, False), (theirs.T, False)):
        norm_line, dot_line = checks.gradient("g", mine, weight, norm, dot, largest=norm)
        assert norm_line.passed
        assert dot_line.passed == passed
    assert not checks.gradient("g", 1.002 * theirs, weight, norm, dot, largest=norm)[0].passed


def test_a_vanishing_gradient_is_measured_by_the_largest_of_the_case():
    weight = np.ones(1, np.float32)
    (norm_line, _) = checks.gradient("g", np.array([9e-7]), weight, 0.0, 0.0, largest=1.0)
    assert norm_line.passed  # 1e-3 * 1e-3 * 1
    (norm_line, _) = checks.gradient("g", np.array([2e-6]), weight, 0.0, 0.0, largest=1.0)
    assert not norm_line.passed


def test_a_gradient_may_be_as_far_off_as_it_moves_by_itself_up_to_3_percent():
    weight = theirs = np.ones(4, np.float32)
    mine = theirs * np.float32(1.005)

    def lines(*moves):
        nudged = [mine * np.float32(1 + move) for move in moves]
        return checks.gradient("g", mine, weight, 2.0, 4.0, largest=2.0, nudged=nudged)

    assert not any(line.passed for line in lines()), "no move, no excuse"
    assert not any(line.passed for line in lines(0.002, -0.003))
    assert all(line.passed and "own drift" in line.note for line in lines(0.002, -0.006))
    assert not any(line.passed for line in lines(0.04)), "too far to be a measure"


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
        (detections([B, A], [0.9, 0.89995], [1, 1]), []),  # nearly the same score: change places
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

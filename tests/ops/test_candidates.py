"""Candidates: best pairs of a row and a class, level by level, and usable boxes."""

import numpy as np

from detlab.ops import anchors, candidates


def sorted_pairs(scores):
    """(score, row, label) of all pairs, best first."""
    pairs = [(score, *place) for place, score in np.ndenumerate(scores)]
    return sorted(pairs, key=lambda pair: -pair[0])


def test_best_pairs_are_those_of_a_sort():
    scores = np.random.default_rng(0).permutation(12).reshape(4, 3).astype(np.float32)
    found = candidates.best_pairs(scores, 5)
    assert list(zip(*map(np.ndarray.tolist, map(np.asarray, found)))) == sorted_pairs(scores)[:5]
    assert found[2].dtype == np.int32
    assert [len(x) for x in candidates.best_pairs(scores, 100)] == [12] * 3, "all 12 pairs"
    _, row, label = candidates.best_pairs(np.float32([[1, 2], [2, 2]]), 3)
    assert list(zip(row.tolist(), label.tolist())) == [(0, 1), (1, 0), (1, 1)], "ties in order"


def test_pairs_of_levels_count_rows_among_those_of_all_levels():
    rng = np.random.default_rng(1)
    levels = [rng.random((rows, 2), np.float32) for rows in (6, 3, 1)]
    scores, row, label = candidates.level_pairs(levels, 4)
    assert len(scores) == 4 + 4 + 2
    np.testing.assert_array_equal(scores, np.concatenate(levels)[row, label])
    expected = [pair[0] for level in levels for pair in sorted_pairs(level)[:4]]
    np.testing.assert_array_equal(scores, expected)


def test_cells_that_hold_padding_alone_have_scores_of_zero():
    grid = anchors.grid((16, 24), (8, 16), per_cell=2)
    logits = [np.zeros((2, *shape, 2 * 3), np.float32) for shape in grid.shapes]
    found = candidates.level_scores(grid, logits, np.int32([[16, 24], [8, 9]]))
    assert [x.shape for x in found] == [(2, 12, 3), (2, 4, 3)]
    assert all((level[0] == 0.5).all() for level in found)
    # The 9 px reach two cells of the first level and one of the second; each has two anchors.
    rows = [np.flatnonzero(level[1].any(-1)).tolist() for level in found]
    assert rows == [[0, 1, 2, 3], [0, 1]]


def test_boxes_without_area_or_not_finite_are_no_candidates_and_low_scores_are_none():
    good = [1, 1, 3, 4]
    boxes = np.float32([good, [1, 1, 1, 4], [3, 1, 1, 4], [1, 1, np.inf, 4], [np.nan] * 4, good])
    scores, label = np.float32([0.9] * 5 + [0.5]), np.zeros(6, np.int32)
    assert candidates.usable(boxes).tolist() == [True, False, False, False, False, True]
    found = candidates.above(0.5, boxes, scores, label)
    assert found.valid.tolist() == [True] + [False] * 5

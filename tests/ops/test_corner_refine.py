"""Corners of boxes move to the best of the four cells around them."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.ops import anchors as anchors_lib
from detlab.ops import corner_refine

move = tiny.jit(corner_refine.move_to_peaks)


def slow_move(points, scores, offsets, stride):
    """One point after another; the first of equal scores by rows."""
    height, width = scores.shape
    moved = []
    for x, y in points:
        column = int(np.clip(np.floor(x / stride), 0, max(width - 2, 0)))
        row = int(np.clip(np.floor(y / stride), 0, max(height - 2, 0)))
        window = [
            (-scores[i, j], i, j)
            for i in range(row, min(row + 2, height))
            for j in range(column, min(column + 2, width))
        ]
        _, i, j = min(window)
        moved.append(((j + offsets[i, j, 0]) * stride, (i + offsets[i, j, 1]) * stride))
    return np.array(moved)


@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (4, 1), (1, 1)])
def test_points_move_as_in_a_plain_loop(shape):
    """Few different scores, so that many are equal; points in and around the map."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, shape).astype(np.float32)
    offsets = rng.normal(0, 0.4, (*shape, 2)).astype(np.float32)
    points = rng.uniform(-20, 70, (40, 2)).astype(np.float32)
    found = move(points, scores, offsets, 8)
    np.testing.assert_allclose(found, slow_move(points, scores, offsets, 8), rtol=1e-5, atol=1e-4)


def test_a_point_on_the_far_edge_moves_within_the_last_two_cells():
    scores = jnp.zeros((2, 3)).at[0, 0].set(1.0).at[1, 2].set(0.5)
    found = move(jnp.array([[24.0, 16.0], [0.0, 0.0]]), scores, jnp.zeros((2, 3, 2)), 8)
    np.testing.assert_array_equal(found, [[16.0, 8.0], [0.0, 0.0]])


def test_boxes_of_the_first_level_stay_and_others_use_the_heatmaps_of_p3_and_p4():
    """The peak of each level is elsewhere, so the moved corners tell which heatmap moved them."""
    grid = anchors_lib.grid((256, 256), (8, 16, 32, 64, 128))
    boxes = np.tile(np.float32([4, 4, 36, 36]), (len(grid.points()), 1))
    scores, offsets = [], []
    for level, shape in enumerate(grid.shapes):
        scores.append(jnp.ones((*shape, 2)))
        offsets.append(jnp.full((*shape, 4), 0.125 * (level + 1)))
    found = np.asarray(
        tiny.jit(corner_refine.refine, static_argnums=0)(grid, boxes, scores, offsets)
    )
    # Of equal scores the first cell: (0, 0) and (4, 4) of P3, (0, 0) and (2, 2) of P4.
    by_p3 = [1, 1, 33, 33]
    by_p4 = [4, 4, 36, 36]
    for level, (part, expected) in enumerate(
        zip(grid.slices(), ([4, 4, 36, 36], by_p3, by_p3, by_p4, by_p4), strict=True)
    ):
        np.testing.assert_allclose(found[part], np.tile(expected, (len(found[part]), 1))), level


def test_both_kinds_of_corners_have_their_own_heat():
    grid = anchors_lib.grid((16, 16), (8, 16))
    heat = np.zeros((2, 2, 2), np.float32)
    heat[0, 1, 0], heat[1, 0, 1] = 1, 1
    scores, offsets = [heat, np.zeros((1, 1, 2))], [np.zeros((2, 2, 4)), np.zeros((1, 1, 4))]
    found = corner_refine.refine(grid, jnp.zeros((5, 4)), scores, offsets)
    np.testing.assert_array_equal(found[4], [8, 0, 0, 8])
    assert not found[:4].any()

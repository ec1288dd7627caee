"""Targets of verification: by hand, against plain loops, and what padding changes."""

import functools

import numpy as np
import pytest
import tiny

from detlab.assign import verification
from detlab.ops import anchors as anchors_lib

CANVAS, STRIDES = (72, 104), (8, 16, 32, 64, 128)  # sizes that no coarse stride divides
GRID = anchors_lib.grid(CANVAS, STRIDES)
NUM_CLASSES = 3


@functools.cache
def program(canvas):
    grid = anchors_lib.grid(canvas, STRIDES)
    return tiny.jit(
        lambda *args: verification.targets(grid, *args, num_classes=NUM_CLASSES, min_overlap=0.7)
    )


def run(boxes, labels, valid=None, size=CANVAS, canvas=CANVAS):
    valid = np.ones(len(boxes), bool) if valid is None else valid
    args = np.float32(boxes).reshape(-1, 4), np.int32(labels), np.asarray(valid), np.int32(size)
    return {name: np.asarray(x) for name, x in program(canvas)(*args).items()}


def random_objects(count, seed, size=CANVAS):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, (size[1] - 12, size[0] - 12), (count, 2))
    high = np.minimum(low + rng.uniform(8, 80, (count, 2)), [size[1], size[0]])
    return np.float32(np.concatenate([low, high], -1)), rng.integers(0, NUM_CLASSES, count)


def radius(width, height, overlap=0.7):
    """Of three ways to move both corners, the one that loses the most overlap."""
    both, area = width + height, width * height
    in_and_out = (both - np.sqrt(both**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    smaller = (2 * both - np.sqrt(4 * both**2 - 16 * (1 - overlap) * area)) / 8
    b = 2 * overlap * both
    larger = (-b + np.sqrt(b**2 + 16 * overlap * (1 - overlap) * area)) / (8 * overlap)
    return min(in_and_out, smaller, larger)


def slow_corners(corners, boxes, inside):
    """Heat and offset of one kind of corner, level after level and object after object."""
    points, level = np.float64(GRID.points()), np.asarray(GRID.level())
    heat, offset = np.zeros(len(points)), np.zeros((len(points), 2))
    for index, stride in enumerate(STRIDES):
        here = np.flatnonzero((level == index) & inside)
        peaks = []
        for (x, y), (x1, y1, x2, y2) in zip(np.float64(corners), np.float64(boxes)):
            distance = np.hypot(points[here, 0] - x, points[here, 1] - y)
            reach = radius(x2 - x1, y2 - y1)
            gaussian = np.exp(-(distance**2) / (2 * ((2 * reach + 1) / 6) ** 2))
            heat[here] = np.maximum(heat[here], np.where(distance < reach, gaussian, 0))
            peaks.append(here[distance.argmin()])
            offset[peaks[-1]] = (np.array([x, y]) - points[peaks[-1]]) / stride
        heat[peaks] = 1
    return heat, offset


def slow_foreground(boxes, labels, size):
    """Paints the map of P3 from the largest object to the smallest, then resizes it."""
    rows, columns = GRID.shapes[0]
    weights = np.zeros((NUM_CLASSES, rows, columns))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for slot in np.argsort(-area):
        x1, y1, x2, y2 = (int(v / 8) for v in boxes[slot])
        weights[labels[slot], y1 : y2 + 1, x1 : x2 + 1] = 1 / area[slot]
    levels = []
    for stride, (height, width) in zip(STRIDES, GRID.shapes):
        for i in range(height):
            for j in range(width):
                inside = i * stride < size[0] and j * stride < size[1]
                cell = weights[:, i * rows // height, j * columns // width]
                levels.append(cell if inside else np.zeros(NUM_CLASSES))
    return np.array(levels)


@pytest.mark.parametrize("size", [CANVAS, (50, 77)])
def test_targets_equal_plain_loops(size):
    inside = np.asarray(GRID.inside(np.int32(size)))
    shared = 0
    for seed in range(4):
        boxes, labels = random_objects(7, seed, size)
        found = run(boxes, labels, size=size)
        for kind, corners in (("top_left", boxes[:, :2]), ("bottom_right", boxes[:, 2:])):
            heat, offset = slow_corners(corners, boxes, inside)
            np.testing.assert_array_equal(found[f"{kind}_heat"] == 1, heat == 1)
            np.testing.assert_allclose(found[f"{kind}_heat"], heat, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found[f"{kind}_offset"], offset, atol=1e-5)
            shared += 7 * len(STRIDES) - (heat == 1).sum()
        expected = slow_foreground(boxes, labels, size)
        np.testing.assert_allclose(found["foreground"], expected, rtol=1e-5)
    assert shared > 0, "corners share peaks"


def test_targets_by_hand():
    found = run([[9, 6, 41, 30]], [2])
    # The points of P3 nearest to the corners (9, 6) and (41, 30): columns 1 and 5, rows 1 and 4.
    first, second = 1 * 13 + 1, 4 * 13 + 5
    assert np.flatnonzero(found["top_left_heat"][: 9 * 13] == 1).tolist() == [first]
    assert np.flatnonzero(found["bottom_right_heat"][: 9 * 13] == 1).tolist() == [second]
    np.testing.assert_allclose(found["top_left_offset"][first], [1 / 8, -2 / 8])
    np.testing.assert_allclose(found["bottom_right_offset"][second], [1 / 8, -2 / 8])
    for kind in ("top_left", "bottom_right"):
        assert (found[f"{kind}_heat"] == 1).sum() == len(STRIDES)  # one on each level
    # The radius of 32 x 24 px is 2.2 px, and no other point is as near.
    assert np.count_nonzero(found["top_left_heat"]) == len(STRIDES)
    foreground = found["foreground"][: 9 * 13].reshape(9, 13, NUM_CLASSES)
    assert (foreground[0:4, 1:6, 2] > 0).all() and np.count_nonzero(foreground) == 4 * 5
    np.testing.assert_allclose(foreground.max(), 1 / (32 * 24), rtol=1e-6)


def test_halfway_between_points_the_first_is_the_peak():
    found = run([[12, 20, 60, 52]], [0])
    assert np.flatnonzero(found["top_left_heat"][: 9 * 13] == 1).tolist() == [2 * 13 + 1]
    np.testing.assert_allclose(found["top_left_offset"][2 * 13 + 1], [0.5, 0.5])


def test_heat_around_a_corner_falls_with_the_distance_in_pixels():
    """The corner (12, 8) lies between two points of P3, and 4 px from each."""
    found = run([[12, 8, 104, 72]], [0])
    reach = radius(92, 64)
    assert 4 < reach < 8
    value = np.exp(-(4**2) / (2 * ((2 * reach + 1) / 6) ** 2))
    heat = found["top_left_heat"][: 9 * 13].reshape(9, 13)
    np.testing.assert_allclose(heat[1, 1:3], [1, value], rtol=1e-4)
    assert np.count_nonzero(heat) == 2


def test_of_corners_that_share_a_peak_the_later_object_gives_the_offset():
    boxes = [[9, 9, 41, 41], [10, 7, 60, 50], [0, 0, 8, 8]]
    found = run(boxes, [0, 1, 1], [True, True, False])
    np.testing.assert_allclose(found["top_left_offset"][13 + 1], [2 / 8, -1 / 8])


def test_where_boxes_of_a_class_overlap_the_smallest_counts():
    boxes, labels = [[0, 0, 100, 60], [16, 16, 31, 31], [16, 16, 31, 31]], [0, 0, 1]
    for order in ([0, 1, 2], [2, 1, 0]):
        found = run(np.float32(boxes)[order], np.array(labels)[order])["foreground"]
        cell = found[2 * 13 + 3]  # (24, 16) px
        np.testing.assert_allclose(cell, [1 / 225, 1 / 225, 0], rtol=1e-6)
        np.testing.assert_allclose(found[0], [1 / 6000, 0, 0], rtol=1e-6)


def test_empty_slots_have_no_targets_whatever_they_hold():
    boxes, labels = random_objects(5, seed=1)
    expected = run(boxes, labels)
    for filler in (np.zeros((3, 4)), [[0, 0, 96, 72]] * 3):
        more = np.concatenate([boxes, np.float32(filler)]), np.concatenate([labels, [1, 1, 1]])
        found = run(*more, np.arange(8) < 5)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    for count in (0, 3):
        empty = run(np.ones((count, 4)), np.zeros(count, int), np.zeros(count, bool))
        assert not any(values.any() for values in empty.values())


def test_a_box_without_area_has_finite_targets():
    found = run([[20, 20, 20, 20], [0, 0, 0, 40]], [0, 1])
    assert all(np.isfinite(values).all() for values in found.values())
    assert (found["top_left_heat"] == 1).any() and (found["foreground"] > 0).any()


def test_a_larger_canvas_changes_no_target_of_the_content():
    """If every level has half the cells of the one before, as on a canvas of multiples of 128."""
    boxes, labels = random_objects(6, seed=2, size=(128, 128))
    small, large = (
        run(boxes, labels, size=(128, 128), canvas=canvas) for canvas in ((128, 128), (256, 384))
    )
    grid = anchors_lib.grid((256, 384), STRIDES)
    inside = np.asarray(grid.inside(np.int32([128, 128])))
    for name, values in small.items():
        np.testing.assert_allclose(large[name][inside], values, rtol=1e-6, err_msg=name)
        assert not large[name][~inside].any()

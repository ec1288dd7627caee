"""Assignment of points to objects around them or near them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import points as points_lib
from detlab.ops import anchors as anchors_lib
from detlab.ops import coders

SEED = 0
SLOTS = 12  # more than any case has, so that all cases share a program
assign = tiny.jit(points_lib.assign)
assign_images = tiny.jit(
    jax.vmap(
        lambda points, low, high, boxes, valid, radius: points_lib.assign(
            points, low, high, boxes, valid, center_radius=radius
        ),
        in_axes=(None, None, None, 0, 0, None),
    )
)


def pyramid(extent=96, strides=(8, 16, 32)):
    """Points [N, 2], their reach (low, high) [N] each, and strides [N]."""
    grid = anchors_lib.grid((extent, extent), strides)
    points, level = grid.points(0.5), grid.level()
    limits = np.float32([0, 24, 48, np.inf])
    return np.asarray(points), limits[level], limits[level + 1], np.float32(strides)[level]


def random_boxes(count, seed=SEED, extent=96.0):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(-5, extent - 10, (count, 2)), rng.uniform(6, 90, (count, 2))
    return np.concatenate([low, low + size], axis=-1).astype(np.float32)


def slow_assign(points, low, high, boxes, radius=None):
    """A loop over points and objects: (status, matched)."""
    status, matched = np.zeros(len(points), int), np.zeros(len(points), int)
    for n, (x, y) in enumerate(points):
        smallest = np.inf
        for slot, (x1, y1, x2, y2) in enumerate(boxes):
            distances = x - x1, y - y1, x2 - x, y2 - y
            fits = min(distances) > 0 and low[n] <= max(distances) <= high[n]
            if radius is not None:
                fits &= abs(x - (x1 + x2) / 2) < radius[n] and abs(y - (y1 + y2) / 2) < radius[n]
            if fits and (x2 - x1) * (y2 - y1) < smallest:
                smallest = (x2 - x1) * (y2 - y1)
                status[n], matched[n] = 1, slot
    return status, matched


@pytest.mark.parametrize("name", ["fcos_plain", "fcos_center", "fcos_center_norm"])
def test_targets_equal_the_reference(unit_cases, name):
    case, arrays = unit_cases("targets")[name]
    args, levels = case["args"], range(len(case["args"]["strides"]))
    points = [arrays[f"points_{i}"] for i in levels]
    counts = [len(x) for x in points]
    stride = np.repeat(np.float32(args["strides"]), counts)
    low, high = np.repeat(np.float32(args["regress_ranges"]), counts, axis=0).T
    centered = args.get("center_sampling", False)
    radius = stride * (args.get("center_sample_radius", 1.5) if centered else 1e6)
    points = np.concatenate(points)

    boxes, labels = np.zeros((3, SLOTS, 4), np.float32), np.zeros((3, SLOTS), np.int32)
    valid = np.zeros((3, SLOTS), bool)
    for i in range(3):
        found = arrays[f"gt_boxes_{i}"]
        boxes[i, : len(found)], valid[i, : len(found)] = found, True
        labels[i, : len(found)] = arrays[f"gt_labels_{i}"]
    assigned = assign_images(points, low, high, boxes, valid, radius)
    status, matched = np.asarray(assigned.status), np.asarray(assigned.matched)
    found = np.where(status == 1, np.take_along_axis(labels, matched, 1), 5)
    distances = coders.encode_ltrb(points, np.take_along_axis(boxes, matched[..., None], 1))
    distances = np.where(valid.any(1)[:, None, None], distances, 0.0)  # [3, N, 4]
    unit = stride[:, None] if args.get("norm_on_bbox") else 1.0
    ends = np.cumsum([0, *counts])
    centerness = []
    for i in levels:
        part = slice(ends[i], ends[i + 1])
        np.testing.assert_array_equal(found[:, part].ravel(), arrays[f"labels_{i}"])
        values = (distances / unit)[:, part].reshape(-1, 4)
        np.testing.assert_allclose(values, arrays[f"targets_{i}"], **case["tolerance"])
        centerness.append(np.asarray(points_lib.centerness(values))[found[:, part].ravel() < 5])
    np.testing.assert_allclose(
        np.concatenate(centerness), arrays["centerness"], **case["tolerance"]
    )


def test_assignment_by_hand():
    """One row of points, 8 px apart, and two objects, the second inside the first."""
    points = np.float32([[4, 4], [12, 4], [20, 4], [28, 4], [36, 4]])
    boxes = np.float32([[0, 0, 30, 8], [10, 0, 22, 8], [0, 0, 0, 0]])
    found = assign(points, np.zeros(5), np.full(5, np.inf), boxes, np.array([True, True, False]))
    assert found.status.tolist() == [1, 1, 1, 1, 0]
    assert found.matched.tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("centered", [False, True])
def test_assignment_equals_a_slow_loop(centered):
    points, low, high, stride = pyramid()
    radius = 1.5 * stride if centered else None
    program = functools.partial(tiny.jit(points_lib.assign), center_radius=radius)
    seen = set()
    for seed in range(5):
        boxes = random_boxes(9, seed)
        found = program(points, low, high, boxes, np.ones(9, bool))
        status, matched = slow_assign(points, low, high, boxes, radius)
        np.testing.assert_array_equal(found.status, status, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(found.matched, matched, err_msg=f"seed {seed}")
        seen |= set(status)
    assert seen == {0, 1}


def test_a_point_on_a_side_is_outside_and_the_limits_of_the_reach_are_inside():
    points = np.float32([[10, 20], [20, 20]])
    boxes, valid = np.float32([[10, 10, 30, 30]]), np.array([True])
    anywhere = assign(points, np.zeros(2), np.full(2, np.inf), boxes, valid)
    assert anywhere.status.tolist() == [0, 1]
    for low, high, inside in ((10, 99, 1), (0, 10, 1), (10.01, 99, 0), (0, 9.99, 0)):
        found = assign(points, np.full(2, low), np.full(2, high), boxes, valid)
        assert found.status[1] == inside


def test_of_equal_areas_the_first_object_is_learnt():
    boxes = np.float32([[0, 0, 20, 10], [0, 0, 10, 20], [0, 0, 20, 10]])
    found = assign(np.float32([[5, 5]]), np.zeros(1), np.full(1, np.inf), boxes, np.ones(3, bool))
    assert found.matched.tolist() == [0]


def test_padded_slots_are_never_matched_whatever_they_hold():
    points, low, high, _ = pyramid()
    boxes = random_boxes(6)
    expected = assign(points, low, high, boxes, np.ones(6, bool))
    for filler in (np.zeros((3, 4)), [[0, 0, 96, 96]] * 3):
        padded = np.concatenate([boxes, np.float32(filler)])
        found = assign(points, low, high, padded, np.arange(9) < 6)
        for a, b in zip(found, expected):
            np.testing.assert_array_equal(a, b)


def test_without_objects_all_points_are_negative():
    points, low, high, _ = pyramid()
    for count in (0, 3):
        found = assign(points, low, high, np.zeros((count, 4), np.float32), np.zeros(count, bool))
        assert not found.status.any() and not found.matched.any()


def test_points_outside_the_content_are_ignored():
    points, low, high, _ = pyramid()
    inside = points[:, 0] < 50
    found = tiny.jit(points_lib.assign)(
        points, low, high, random_boxes(6), np.ones(6, bool), point_valid=inside
    )
    expected = assign(points, low, high, random_boxes(6), np.ones(6, bool))
    np.testing.assert_array_equal(found.status, np.where(inside, expected.status, -1))


def nearest_args(strides, priors):
    """Points, levels and strides of a unit case, from priors [N, 4] x, y, stride, stride."""
    return priors[:, :2], np.searchsorted(strides, priors[:, 2]).astype(np.int32), strides


def slow_nearest(points, level, strides, boxes, scale, count):
    """A loop over objects, with all distances of the level of each: (status, matched)."""
    nearest, matched = np.full(len(points), np.inf), np.zeros(len(points), int)
    for slot, (x1, y1, x2, y2) in enumerate(np.float64(boxes)):
        w, h = max(x2 - x1, 1e-6), max(y2 - y1, 1e-6)
        own = np.floor((np.log2(w / scale) + np.log2(h / scale)) / 2)
        own = np.clip(own, np.log2(strides[0]), np.log2(strides[-1])) - np.log2(strides[0])
        here = np.flatnonzero(level == own)
        offset = (points[here] - [(x1 + x2) / 2, (y1 + y2) / 2]) / [w, h]
        distance = np.hypot(*offset.T)
        for n in np.argsort(distance, kind="stable")[:count]:
            if distance[n] < nearest[here[n]]:
                nearest[here[n]], matched[here[n]] = distance[n], slot
    return np.isfinite(nearest).astype(int), matched


@pytest.mark.parametrize("name", ["point_4_1", "point_4_3", "point_2_5", "point_none"])
def test_nearest_points_equal_the_reference(unit_cases, name):
    case, arrays = unit_cases("assign")[name]
    boxes, scale, count = arrays["gt_boxes"], case["args"]["scale"], case["args"]["pos_num"]
    strides = tuple(np.unique(arrays["priors"][:, 2]))
    options = dict(scale=scale, num_positive=count)
    points, level, strides = nearest_args(strides, arrays["priors"])
    valid = np.ones(len(boxes), bool)
    found = points_lib.assign_nearest(points, level, strides, boxes, valid, **options)
    inds = np.where(found.status == 1, found.matched + 1, found.status)
    np.testing.assert_array_equal(inds, arrays["gt_inds"])
    if len(boxes):
        labels = np.where(inds > 0, arrays["gt_labels"][found.matched], -1)
        np.testing.assert_array_equal(labels, arrays["labels"])


@functools.partial(tiny.jit, static_argnums=(2, 5))
def assign_nearest(points, level, strides, boxes, valid, count, point_valid):
    return points_lib.assign_nearest(
        points, level, strides, boxes, valid, num_positive=count, point_valid=point_valid
    )


def nearest_pyramid(extent=96, strides=(4, 8, 16)):
    grid = anchors_lib.grid((extent, extent), strides)
    points, level = grid.points(), grid.level()
    return np.asarray(points), np.asarray(level), strides


def test_nearest_points_equal_a_slow_loop():
    points, level, strides = nearest_pyramid()
    everywhere = np.ones(len(points), bool)
    shared = 0
    for seed in range(5):
        boxes = random_boxes(9, seed)
        found = assign_nearest(points, level, strides, boxes, np.ones(9, bool), 3, everywhere)
        status, matched = slow_nearest(points, level, strides, boxes, 4.0, 3)
        np.testing.assert_array_equal(found.status, status, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(found.matched, matched, err_msg=f"seed {seed}")
        shared += 27 - status.sum()
    assert shared > 0, "objects compete for points"


def test_the_level_of_an_object_begins_at_its_exact_size():
    points, level, strides = nearest_pyramid()
    everywhere = np.ones(len(points), bool)
    sides = (1, 31.9, 32, 63.9, 64, 1000)
    boxes = np.float32([[40 - s / 2, 40 - s / 2, 40 + s / 2, 40 + s / 2] for s in sides])
    for box, own in zip(boxes, (0, 0, 1, 1, 2, 2), strict=True):
        found = assign_nearest(points, level, strides, box[None], np.array([True]), 1, everywhere)
        assert level[np.flatnonzero(found.status == 1)].tolist() == [own]


def test_padded_slots_take_no_point_and_points_outside_the_content_are_ignored():
    points, level, strides = nearest_pyramid()
    boxes = random_boxes(6)
    inside = points[:, 0] < 50
    expected = assign_nearest(points, level, strides, boxes, np.ones(6, bool), 3, inside)
    assert (np.asarray(expected.status) == -1).tolist() == (~inside).tolist()
    alone = points_lib.assign_nearest(
        points[inside], level[inside], strides, boxes, np.ones(6, bool), num_positive=3
    )
    for a, b in zip(expected, alone):
        np.testing.assert_array_equal(np.asarray(a)[inside], b)
    for filler in (np.zeros((3, 4)), [[0, 0, 40, 40]] * 3):
        padded = np.concatenate([boxes, np.float32(filler)])
        found = assign_nearest(points, level, strides, padded, np.arange(9) < 6, 3, inside)
        for a, b in zip(found, expected):
            np.testing.assert_array_equal(a, b)


def test_a_level_of_fewer_points_gives_all_it_has():
    points, level = np.float32([[0, 0], [8, 0], [0, 0]]), np.int32([0, 0, 1])
    box = np.float32([[0, 0, 8, 8]])
    found = points_lib.assign_nearest(points, level, (8, 16), box, np.array([True]), num_positive=9)
    assert found.status.tolist() == [1, 1, 0]


def test_centerness_is_one_in_the_middle_and_zero_on_a_side_and_outside():
    distances = np.float32(
        [[5, 3, 5, 3], [1, 3, 9, 3], [4, 2, 16, 8], [0, 3, 9, 3], [-1, 3, 9, 3], [0, 0, 0, 0]]
    )
    expected = [1, 1 / 3, np.sqrt(4 / 16 * 2 / 8), 0, 0, 0]
    found = tiny.jit(points_lib.centerness)(distances)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(points_lib.centerness(jnp.asarray(distances) * 7), found, rtol=1e-6)

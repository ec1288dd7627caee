"""Gaussian targets and peaks of heatmaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import heatmaps

SEED = 0
SHAPE, CLASSES, SLOTS = (23, 20), 4, 12
radius_of = jax.jit(heatmaps.gaussian_radius, static_argnums=1)
find_peaks = jax.jit(heatmaps.find_peaks, static_argnums=(1, 2))
local_maxima = jax.jit(heatmaps.local_maxima, static_argnums=1)


@functools.partial(jax.jit, static_argnums=(4, 5))
def draw_batch(points, radii, labels, valid, shape, num_classes):
    draw = functools.partial(heatmaps.draw_gaussians, shape=shape, num_classes=num_classes)
    return jax.vmap(draw)(points, radii, labels, valid)


def draw(points, radii, labels, valid=None, slots=SLOTS):
    """Draws one image of SHAPE; padding its objects lets all tests share a program."""
    space = slots - len(points)
    valid = np.ones(len(points), bool) if valid is None else valid
    return draw_batch(
        np.pad(np.reshape(points, (-1, 2)), ((0, space), (0, 0)))[None],
        np.pad(radii, (0, space))[None],
        np.pad(labels, (0, space))[None],
        np.pad(valid, (0, space))[None],
        SHAPE,
        CLASSES,
    )[0]


def slow_radius(width, height, min_overlap):
    """The smallest of the three roots, in float64."""
    total, area = width + height, width * height
    roots = []
    for a, b, c, sign in (
        (1, -total, (1 - min_overlap) / (1 + min_overlap) * area, -1),
        (4, -2 * total, (1 - min_overlap) * area, -1),
        (4 * min_overlap, 2 * min_overlap * total, (min_overlap - 1) * area, 1),
    ):
        roots.append((-b + sign * np.sqrt(b**2 - 4 * a * c)) / (2 * a))
    return np.min(roots, axis=0)


def slow_draw(points, radii, labels, shape, num_classes):
    """A loop over objects and cells, in float64."""
    heat = np.zeros((*shape, num_classes))
    for (x, y), radius, label in zip(points, radii, labels):
        sigma = (2 * radius + 1) / 6
        for row in range(max(y - radius, 0), min(y + radius + 1, shape[0])):
            for column in range(max(x - radius, 0), min(x + radius + 1, shape[1])):
                value = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                heat[row, column, label] = max(heat[row, column, label], value)
    return heat


@pytest.mark.parametrize("min_overlap", [0.3, 0.7])
def test_radius_is_the_smallest_root_of_three_for_every_size_to_200_cells(min_overlap):
    sizes = np.stack(np.meshgrid(np.arange(1.0, 201), np.arange(1.0, 201)), axis=-1)
    radius = radius_of(sizes, min_overlap)
    expected = slow_radius(sizes[..., 0], sizes[..., 1], min_overlap)
    np.testing.assert_allclose(radius, expected, rtol=1e-6)
    # Compare whole cells; 1e-9 undoes double precision falling just below a whole number.
    np.testing.assert_array_equal(np.floor(radius), np.floor(expected + 1e-9))


def test_radius_leaves_the_overlap_and_other_moves_leave_more():
    rng = np.random.default_rng(SEED)
    sizes = rng.uniform(1, 300, (1000, 2))
    r = np.asarray(radius_of(sizes, 0.3), np.float64)
    w, h = sizes.T
    inwards = (w - 2 * r) * (h - 2 * r) / (w * h)
    np.testing.assert_allclose(inwards, 0.3, rtol=1e-5)
    outwards = w * h / ((w + 2 * r) * (h + 2 * r))
    mixed = (w - r) * (h - r) / (2 * w * h - (w - r) * (h - r))
    assert (outwards > inwards).all() and (mixed > inwards).all()


def test_radius_is_symmetric_scales_with_the_box_and_is_0_without_area():
    sizes = np.array([[3.0, 40], [17, 9]])
    radius = radius_of(sizes, 0.7)
    np.testing.assert_array_equal(radius_of(sizes[:, ::-1], 0.7), radius)
    np.testing.assert_allclose(radius_of(8 * sizes, 0.7), 8 * radius, rtol=1e-6)
    flat = np.array([[0.0, 0], [0, 9], [-3, 5], [-3, -5]])
    np.testing.assert_array_equal(radius_of(flat, 0.3), 0)


def corner_heatmaps(boxes, labels, image_shape, shape, slots):
    """CornerNet's heatmaps of boxes [B, G, 4], in NumPy up to the drawing."""
    height, width = shape
    scale = np.float32([width / image_shape[1], height / image_shape[0]])
    low, high = boxes[..., :2] * scale, boxes[..., 2:] * scale
    radii = np.floor(radius_of(np.ceil(high - low), 0.3)).astype(int)
    valid = boxes[..., 2] > 0
    last = [width - 1, height - 1]
    return [
        draw_batch(np.minimum(corner, last).astype(int), radii, labels, valid, shape, CLASSES)
        for corner in (low, high)
    ]


@pytest.mark.parametrize("name", ["corner_targets", "centripetal_targets"])
def test_targets_equal_the_reference(unit_cases, name):
    """Three images: one has no objects, one has objects that share a corner's cell."""
    case, arrays = unit_cases("targets")[name]
    boxes, labels = np.zeros((3, SLOTS, 4), np.float32), np.zeros((3, SLOTS), int)
    for i in range(3):
        count = len(arrays[f"gt_boxes_{i}"])
        boxes[i, :count], labels[i, :count] = arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"]
    shape = tuple(case["args"]["feat_shape"][2:])
    drawn = corner_heatmaps(boxes, labels, case["args"]["img_shape"], shape, SLOTS)
    for corner, heat in zip(("topleft", "bottomright"), drawn):
        expected = np.moveaxis(arrays[f"{corner}_heatmap"], 1, -1)
        np.testing.assert_allclose(heat, expected, **case["tolerance"])
        np.testing.assert_array_equal(heat == 1, expected == 1)


def test_a_literal_gaussian():
    """Radius 1 has sigma 1/2: exp(-2) beside the peak, exp(-4) at the corners, nothing beyond."""
    heat = draw([[2, 3]], [1], [1])
    side, corner = np.exp(-2), np.exp(-4)
    expected = [[0, 0, 0, 0, 0], [0, corner, side, corner, 0], [0, side, 1, side, 0]]
    np.testing.assert_allclose(heat[1:4, :5, 1], expected, rtol=1e-6)
    assert np.count_nonzero(heat) == 9


def test_random_objects_equal_a_loop_over_cells():
    for seed in range(3):
        rng = np.random.default_rng([SEED, seed])
        points = rng.integers(0, SHAPE[::-1], (SLOTS, 2))
        radii, labels = rng.integers(0, 9, SLOTS), rng.integers(0, CLASSES, SLOTS)
        expected = slow_draw(points, radii, labels, SHAPE, CLASSES)
        heat = np.asarray(draw(points, radii, labels))
        # Two factors with exponents up to 4.5, each rounded four times with relative error 6e-8.
        np.testing.assert_allclose(heat, expected, rtol=2.5e-6, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(heat == 1, expected == 1)


def test_order_does_not_matter_and_the_larger_of_two_counts():
    points, radii, labels = np.array([[5, 5], [7, 5], [7, 5]]), [4, 4, 0], [2, 2, 3]
    heat = draw(points, radii, labels)
    np.testing.assert_array_equal(draw(points[::-1], radii[::-1], labels[::-1]), heat)
    alone = [draw(points[i : i + 1], radii[i : i + 1], labels[i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(heat, np.maximum.reduce(alone))
    np.testing.assert_array_equal(np.argwhere(heat == 1), [[5, 5, 2], [5, 7, 2], [5, 7, 3]])


def test_padding_draws_nothing_whatever_it_holds():
    points, radii, labels = [[5, 5], [3, 9], [0, 0]], [4, 100, 3], [1, -1, 99]
    valid = np.array([True, False, False])
    heat = draw(points, radii, labels, valid)
    np.testing.assert_array_equal(heat, draw(points[:1], radii[:1], labels[:1]))
    assert not draw(np.zeros((0, 2), int), np.zeros(0, int), np.zeros(0, int)).any()
    none = heatmaps.draw_gaussians(
        jnp.zeros((0, 2), int), jnp.zeros(0, int), jnp.zeros(0, int), jnp.zeros(0, bool), (3, 4), 2
    )
    np.testing.assert_array_equal(none, np.zeros((3, 4, 2)))


def slow_peaks(heat, max_peaks, kernel):
    """Searches window by window; (row, column, channel), best first."""
    reach, found = kernel // 2, []
    for row, column, channel in np.ndindex(heat.shape):
        rows = slice(max(row - reach, 0), row + reach + 1)
        columns = slice(max(column - reach, 0), column + reach + 1)
        if heat[row, column, channel] == heat[rows, columns, channel].max():
            found.append((row, column, channel))
    return sorted(found, key=lambda cell: -heat[cell])[:max_peaks]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_peaks_equal_a_search_window_by_window(kernel):
    rng = np.random.default_rng(SEED)
    for values in (1000, 6):  # almost no ties, and many ties
        heat = (rng.integers(1, values, (9, 12, 3)) / values).astype(np.float32)
        peaks = find_peaks(heat, 20, kernel)
        rows, columns = np.divmod(peaks.cells, 12)
        expected = slow_peaks(heat, 20, kernel)
        assert peaks.valid.sum() == len(expected)
        found = np.stack([rows, columns, peaks.labels], axis=-1)[peaks.valid]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(peaks.scores[peaks.valid], [heat[cell] for cell in expected])


def test_equal_neighbours_are_both_maxima_and_a_border_has_no_larger_neighbour():
    heat = np.array([[1.0, 1, 0, 2], [0, 0, 0, 0]])[..., None]
    expected = [[True, True, False, True], [False, False, False, False]]
    np.testing.assert_array_equal(local_maxima(heat, 3)[..., 0], expected)
    np.testing.assert_array_equal(local_maxima(-heat - 5, 1), True)


def test_peaks_of_drawn_objects_are_the_objects():
    points, labels = np.array([[3, 4], [15, 4], [3, 18], [4, 4]]), np.array([0, 3, 1, 2])
    heat = draw(points, [2, 3, 4, 5], labels)
    peaks = find_peaks(heat, 4, 3)
    np.testing.assert_array_equal(peaks.scores, 1)
    found = set(zip(peaks.cells.tolist(), peaks.labels.tolist()))
    assert found == set(zip((points[:, 1] * SHAPE[1] + points[:, 0]).tolist(), labels.tolist()))


def test_peaks_turn_and_mirror_with_the_map():
    heat = np.random.default_rng(SEED).permutation(9 * 12 * 3).reshape(9, 12, 3)
    heat = heat.astype(np.float32)
    peaks, mirrored = find_peaks(heat, 20, 3), find_peaks(heat[:, ::-1], 20, 3)
    np.testing.assert_array_equal(mirrored.scores, peaks.scores)
    np.testing.assert_array_equal(mirrored.cells, peaks.cells // 12 * 12 + 11 - peaks.cells % 12)


def test_slots_without_peaks_are_empty_and_come_last():
    """One maximum in a map of 12 cells, negative scores included, and more slots than cells."""
    heat = -np.arange(12.0).reshape(3, 4, 1)
    for slots in (5, 20):
        peaks = find_peaks(heat, slots, 3)
        np.testing.assert_array_equal(peaks.valid, np.arange(slots) == 0)
        for values in peaks[:3]:
            np.testing.assert_array_equal(values[1:], 0)
    none = find_peaks(jnp.zeros((0, 4, 2)), 5, 3)
    assert none.cells.shape == (5,) and not none.valid.any()


def test_cells_take_their_values_and_one_read_twice_takes_both_gradients():
    maps, cells = np.arange(24.0, dtype=np.float32).reshape(3, 4, 2), np.array([0, 7, 7])
    values, pull = jax.vjp(lambda maps: heatmaps.take_cells(maps, cells), maps)
    np.testing.assert_array_equal(values, [[0, 1], [14, 15], [14, 15]])
    (gradient,) = pull(jnp.array([[1.0, 2], [3, 4], [5, 6]]))
    expected = np.zeros((3, 4, 2))
    expected[0, 0], expected[1, 3] = [1, 2], [8, 10]
    np.testing.assert_array_equal(gradient, expected)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="not 4"):
        heatmaps.local_maxima(jnp.zeros((3, 3, 1)), 4)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        heatmaps.find_peaks(jnp.zeros((3, 3)), 4)
    with pytest.raises(ValueError, match="not 0"):
        heatmaps.find_peaks(jnp.zeros((3, 3, 1)), 0)

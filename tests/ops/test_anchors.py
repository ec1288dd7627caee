"""Anchors, points and the order of flattened maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import anchors as anchors_lib

# Sides of SSD's squares in the reference's presets (mmdetection's configs/ssd).  Each level uses
# two adjacent sides, so there is one side more than levels.
SSD_SIDES = {
    "anchors_ssd300": (21, 45, 99, 153, 207, 261, 315),
    "anchors_ssd300_voc": (30, 60, 111, 162, 213, 264, 315),
    "anchors_ssd512": (20, 51, 133, 215, 296, 378, 460, 542),
}
CASES = (
    "anchors_retinanet",
    "anchors_rpn",
    "anchors_atss",
    "anchors_sabl_square",
    "anchors_offset",
    "anchors_yolo",
    *SSD_SIDES,
)


def cells_of(name, args):
    """The anchors of the cell (0, 0) of each level of a unit case."""
    strides = args["strides"]
    if name == "anchors_yolo":
        return [
            anchors_lib.sized_anchors(sizes, stride)
            for sizes, stride in zip(args["base_sizes"], strides)
        ]
    if name in SSD_SIDES:
        sides = SSD_SIDES[name]
        return [
            anchors_lib.sized_anchors(anchors_lib.ssd_sizes(low, high, ratios), stride)
            for low, high, ratios, stride in zip(sides, sides[1:], args["ratios"], strides)
        ]
    scales = args.get("scales")
    if scales is None:
        scales = anchors_lib.octave_scales(args["octave_base_scale"], args["scales_per_octave"])
    return [
        anchors_lib.cell_anchors(
            np.min(stride),
            scales,
            args["ratios"],
            center_offset=args.get("center_offset", 0.0),
            scale_major=args.get("scale_major", True),
        )
        for stride in strides
    ]


@pytest.mark.parametrize("name", CASES)
def test_anchors_equal_the_reference(unit_cases, name):
    case, arrays = unit_cases("priors")[name]
    args = case["args"]
    shapes, strides = args["featmap_sizes"], args["strides"]
    cells = cells_of(name, args)
    grid = anchors_lib.Grid(strides, shapes, [len(cell) for cell in cells])
    anchors, level = jax.jit(lambda: (grid.anchors(cells), grid.level()))()
    np.testing.assert_array_equal(
        np.diff([part.stop for part in grid.slices()]), np.bincount(level)[1:]
    )
    for index, cell in enumerate(cells):
        np.testing.assert_allclose(cell, arrays[f"base_{index}"], **case["tolerance"])
        np.testing.assert_allclose(
            anchors[level == index], arrays[f"anchors_{index}"], **case["tolerance"]
        )


@pytest.mark.parametrize("name", [name for name in CASES if name != "anchors_offset"])
def test_inside_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("priors")[name]
    args = case["args"]
    shapes = args["featmap_sizes"]
    counts = [len(arrays[f"base_{index}"]) for index in range(len(shapes))]
    grid = anchors_lib.Grid(args["strides"], shapes, counts)
    inside = jax.jit(grid.inside)(np.asarray(args["pad_shape"], np.int32))
    expected = [arrays[f"valid_{index}"] for index in range(len(shapes))]
    np.testing.assert_array_equal(inside, np.concatenate(expected).astype(bool))


def test_points_equal_the_reference(unit_cases):
    case, arrays = unit_cases("priors")["points"]
    args = case["args"]
    levels = len(args["strides"])
    grid = anchors_lib.Grid(args["strides"], args["featmap_sizes"], [1] * levels)
    points, level, strides = jax.jit(
        lambda: (grid.points(args["offset"]), grid.level(), grid.stride())
    )()
    for index, stride in enumerate(args["strides"]):
        expected = arrays[f"points_{index}"]
        np.testing.assert_allclose(points[level == index], expected[:, :2], **case["tolerance"])
        np.testing.assert_array_equal(expected[:, 2:], stride)
        np.testing.assert_array_equal(strides[level == index], stride)


def test_retinanet_cell_by_hand():
    scales = anchors_lib.octave_scales(4, 3)
    np.testing.assert_allclose(scales, [4, 5.0396842, 6.3496042], rtol=1e-7)
    cell = anchors_lib.cell_anchors(8, scales, (0.5, 1.0, 2.0))
    assert cell.shape == (9, 4)
    np.testing.assert_array_equal(cell[3], [-16, -16, 16, 16])  # ratio 1, scale 4
    sizes = cell[:, 2:] - cell[:, :2]
    np.testing.assert_allclose(sizes[:, 1] / sizes[:, 0], np.repeat([0.5, 1, 2], 3), rtol=1e-6)
    np.testing.assert_allclose(sizes.prod(axis=1), np.tile((8 * scales) ** 2, 3), rtol=1e-6)


def test_octave_anchors_and_squares_equal_the_reference(unit_cases):
    for name in ("anchors_retinanet", "anchors_sabl_square"):
        case, arrays = unit_cases("priors")[name]
        args = case["args"]
        strides = [np.min(stride) for stride in args["strides"]]
        grid = anchors_lib.Grid(strides, args["featmap_sizes"], [1] * len(strides))
        if name == "anchors_retinanet":
            sizes = args["octave_base_scale"], args["scales_per_octave"], args["ratios"]
            found = grid.octave_anchors(*sizes)
        else:
            found = grid.squares(*args["scales"])
        expected = np.concatenate([arrays[f"anchors_{i}"] for i in range(len(strides))])
        np.testing.assert_allclose(found, expected, **case["tolerance"])


def test_order_is_rows_columns_anchors():
    cell = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])
    grid = anchors_lib.grid_anchors(cell, 10, (2, 3))
    assert grid.shape == (12, 4)
    np.testing.assert_array_equal(grid[:, 0], [0, 0, 10, 10, 20, 20] * 2)
    np.testing.assert_array_equal(grid[:, 1], [0] * 6 + [10] * 6)
    np.testing.assert_array_equal(grid[:, 2] - grid[:, 0], [1, 2] * 6)


def test_flattened_maps_follow_the_anchors():
    """A map that holds the anchor's own coordinates flattens into the anchors."""
    grid = anchors_lib.grid((20, 40), (8, 16), 3)
    assert grid.shapes == ((3, 5), (2, 3))
    cells = [anchors_lib.cell_anchors(stride, (4,), (0.5, 1.0, 2.0)) for stride in grid.strides]
    anchors, level = grid.anchors(cells), grid.level()
    maps = []
    for cell, stride, (rows, columns) in zip(cells, grid.strides, grid.shapes):
        x, y = np.meshgrid(np.arange(columns) * stride, np.arange(rows) * stride)
        shift = np.stack([x, y, x, y], axis=-1)[:, :, None, :]
        maps.append((shift + cell).reshape(1, rows, columns, -1))
    flat = anchors_lib.flatten_levels(maps, 4)
    np.testing.assert_array_equal(flat[0], anchors)
    np.testing.assert_array_equal(level, [0] * 45 + [1] * 18)
    assert level.dtype == jnp.int32


def test_inside_is_one_cell_more_than_the_whole_strides():
    sizes = jnp.array([[16, 17], [24, 32], [1, 1], [99, 99]])
    inside = jax.vmap(anchors_lib.Grid((8,), ((3, 4),), (1,)).inside)(sizes)
    counts = inside.reshape(4, 3, 4)
    np.testing.assert_array_equal(counts.any(axis=2).sum(axis=1), [2, 3, 1, 3])
    np.testing.assert_array_equal(counts.any(axis=1).sum(axis=1), [3, 4, 1, 4])


def test_levels_that_do_not_agree_raise():
    cell = anchors_lib.cell_anchors(8, (4,), (1.0,))
    with pytest.raises(ValueError, match="each of the grid's 2 levels, not 1"):
        anchors_lib.grid((16, 16), (8, 16)).anchors([cell])


def test_a_level_may_have_two_strides():
    """SSD's last levels spread their cells evenly over a canvas that is not square."""
    grid = anchors_lib.Grid(((20.0, 32.0),), ((2, 3),), (1,))  # x, y px
    cell = anchors_lib.sized_anchors([(4, 8)], (20.0, 32.0))
    anchors = np.asarray(grid.anchors([cell]))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.tolist() == [[x, y] for y in (16, 48) for x in (10, 30, 50)]
    inside = jax.jit(grid.inside)(np.int32([32, 41]))  # height, width
    assert inside.tolist() == [True, True, True, False, False, False]
    inside = jax.jit(grid.inside)(np.int32([64, 40]))
    assert inside.tolist() == [True, True, False] * 2

"""Transforms move boxes and placement exactly with the pixels, and are random as documented."""

import colorsys
import tracemalloc

import numpy as np
import painted
import pytest

from detlab import checks
from detlab.data import records, transforms

SIZES = [(64, 96), (65, 97), (37, 120)]


def assert_placement_maps_the_box(record, original):
    """The placement sends the original corners to the corners of the box.

    1e-4 px: a few roundings of float32 on coordinates of about 200.
    """
    sx, sy, tx, ty = record["placement"]
    corners = original["boxes"].reshape(2, 2) * [sx, sy] + [tx, ty]
    mapped = [*corners.min(axis=0), *corners.max(axis=0)]
    np.testing.assert_allclose(record["boxes"][0], mapped, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "transform",
    [
        transforms.mirror_horizontal,
        transforms.mirror_vertical,
        lambda r: transforms.mirror_vertical(transforms.mirror_horizontal(r)),
        lambda r: transforms.resize_fixed(r, 2 * r["image"].shape[0], 2 * r["image"].shape[1]),
        lambda r: transforms.resize_fixed(r, r["image"].shape[0] // 2, r["image"].shape[1] // 2),
        lambda r: transforms.resize_fixed(r, 71, 83),
        lambda r: transforms.resize_keep_ratio(r, 101, 113),
        lambda r: transforms.mirror_horizontal(transforms.resize_keep_ratio(r, 101, 113)),
        lambda r: transforms.resize_fixed(transforms.mirror_horizontal(r), 120, 200),
        lambda r: transforms.pad(transforms.mirror_vertical(r), (130, 125), 7),
        lambda r: transforms.letterbox(r, 101, 113, 50),
        lambda r: transforms.mirror_horizontal(transforms.letterbox(r, 150, 111, 50)),
        lambda r: transforms.letterbox(r, 41, 43, 50, "down", "area"),
        lambda r: transforms.letterbox(r, 101, 43, 50, "up", "area"),
    ],
    ids=["h", "v", "hv", "x2", "half", "fixed", "ratio", "ratio+h", "h+stretch", "v+pad"]
    + ["letterbox", "letterbox+h", "letterbox-", "letterbox-+"],
)
def test_box_and_placement_follow_the_pixels(size, transform):
    record = painted.record(*size)
    moved = transform(record)
    painted.assert_white_is_the_box(moved)
    assert_placement_maps_the_box(moved, record)
    assert moved["boxes"].dtype == moved["placement"].dtype == moved["area"].dtype == np.float32
    sx, sy = moved["placement"][:2]
    np.testing.assert_allclose(moved["area"], record["area"] * abs(sx * sy), rtol=1e-5)


def test_half_and_double_of_an_even_box_are_exact():
    record = painted.record(64, 96)
    half = transforms.resize_fixed(record, 32, 48)
    np.testing.assert_array_equal(half["boxes"], [[5, 2, 15, 14]])
    np.testing.assert_array_equal(half["image"], painted.record(32, 48, (5, 2, 15, 14))["image"])
    double = transforms.resize_fixed(record, 128, 192)
    np.testing.assert_array_equal(double["boxes"], [[20, 8, 60, 56]])
    np.testing.assert_array_equal(double["placement"], [2, 2, 0, 0])


def test_flip_by_hand():
    moved = transforms.mirror_horizontal(painted.record(64, 96))
    np.testing.assert_array_equal(moved["boxes"], [[66, 4, 86, 28]])
    np.testing.assert_array_equal(moved["placement"], [-1, 1, 96, 0])
    moved = transforms.mirror_vertical(painted.record(64, 96))
    np.testing.assert_array_equal(moved["boxes"], [[10, 36, 30, 60]])
    np.testing.assert_array_equal(moved["placement"], [1, -1, 0, 64])


def test_two_flips_give_the_record_back():
    record = painted.record(37, 120)
    for mirror in (transforms.mirror_horizontal, transforms.mirror_vertical):
        again = mirror(mirror(record))
        np.testing.assert_array_equal(again["image"], record["image"])
        np.testing.assert_array_equal(again["boxes"], record["boxes"])
        np.testing.assert_array_equal(again["placement"], [1, 1, 0, 0])


@pytest.mark.parametrize(
    "size, limits, expected",
    [
        ((480, 640), None, (800, 1067)),  # int(640 * 800 / 480 + .5)
        ((427, 640), (1333, 800), (800, 1199)),
        ((240, 640), (1333, 800), (500, 1333)),
        ((240, 640), None, (504, 1344)),
        ((100, 101), (50, 40), (40, 40)),
        ((1, 5000), None, (1, 1344)),
    ],
)
def test_keep_ratio_rounds_as_the_reference(size, limits, expected):
    record = painted.record(*size, box=(0, 0, 1, 1))
    moved = transforms.resize_keep_ratio(record, 800, 1344, limits)
    assert moved["image"].shape[:2] == moved["image_size"] == expected
    ratios = [expected[1] / size[1], expected[0] / size[0]]  # the actual ones, per axis
    np.testing.assert_allclose(moved["placement"], [*ratios, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("shape, size", [((4, 5), (2, 3)), ((3, 2), (7, 9)), ((1, 4), (3, 1))])
def test_corners_stay_and_other_px_are_interpolated_without_rounding(shape, size):
    """Px by px, by the loops of darknet's `resize_image`."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)

    def at(x, length, new):  # the two px and the part of the second
        place = x * (length - 1) / max(new - 1, 1)
        low = min(int(place), length - 1)
        if x == new - 1 or length == 1:
            return length - 1, length - 1, 0
        return low, low + 1, place - low

    expected = np.zeros((*size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            y1, y2, y = at(row, shape[0], size[0])
            x1, x2, x = at(column, shape[1], size[1])
            upper = (1 - x) * image[y1, x1] + x * image[y1, x2]
            lower = (1 - x) * image[y2, x1] + x * image[y2, x2]
            expected[row, column] = (1 - y) * upper + y * lower
    found = transforms.resize_corners(image, *size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    record = transforms.resize_fixed(records.without_objects(image), *size, shrink="corners")
    np.testing.assert_array_equal(record["image"], found)
    same = transforms.resize_fixed(records.without_objects(image), *shape, shrink="corners")
    assert same["image"].dtype == np.float32 and (same["image"] == image).all()


def test_a_letterbox_with_a_longest_side_leaves_the_margin():
    record = transforms.letterbox(
        records.without_objects(np.full((512, 773, 3), 200, np.uint8)),
        *(448, 672), 114, "down", "area", longest=640,
    )  # fmt: skip
    content = (record["image"] == 200).all(-1)
    rows, columns = np.flatnonzero(content.any(1)), np.flatnonzero(content.any(0))
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (12, 12 + 423, 16, 656)


def test_configs_know_the_same_rules():
    assert checks.RULES["predict.shrink"].words == checks.RULES["data.eval_shrink"].words
    assert checks.ROUNDING.words == f"one of {', '.join(transforms.ROUNDINGS)}"
    assert checks.RULES["data.eval_shrink"].words == f"one of {', '.join(transforms.SHRINKS)}"


def sides(size, canvas, rounding, limits=None):
    """(height, width) of a picture of `size` (height, width) px on a canvas."""
    record = painted.record(*size, box=(0, 0, 1, 1))
    moved = transforms.resize_keep_ratio(record, *canvas, limits, rounding=rounding)
    return moved["image_size"]


@pytest.mark.parametrize(
    "size, canvas, limits, expected",
    [  # half_up, half_even, down, up, whole
        # Exact halves: 512.5 and 517.5, 313.5 and 314.5 px ...
        ((820, 1024), (640, 640), None, [513, 512, 512, 513, 512]),
        ((828, 1024), (640, 640), None, [518, 518, 517, 518, 517]),
        ((209, 256), (384, 384), None, [314, 314, 313, 314, 313]),
        ((629, 1280), (640, 640), None, [315, 314, 314, 315, 314]),
        # ... and 802.5 px of the longer side, by the limits.
        ((640, 642), (1344, 1344), (1333, 800), [803, 802, 802, 803, 802]),
        # 253.5 px, but the product of floats is 253.49999999999997.
        ((234, 384), (416, 416), None, [253, 253, 253, 254, 253]),
        # 390 px, but the product of floats is 389.99999999999994 ...
        ((345, 368), (416, 416), None, [390, 390, 389, 390, 390]),
        # ... and 480 px, but it is 480.00000000000006.
        ((237, 316), (640, 640), None, [480, 480, 480, 481, 480]),
        # The photographs of `images`: 423.9 px; all others have whole sides.
        ((512, 773), (640, 640), None, [424, 424, 423, 424, 423]),
        ((720, 1280), (640, 640), None, [360] * 5),
        ((576, 768), (640, 640), None, [480] * 5),
        ((424, 640), (640, 640), None, [424] * 5),
        ((1, 5000), (640, 640), None, [1] * 5),
    ],
)
def test_sides_are_rounded_by_each_rule(size, canvas, limits, expected):
    axis = 1 if limits else 0
    found = {name: sides(size, canvas, name, limits)[axis] for name in transforms.ROUNDINGS}
    assert found == dict(zip(["half_up", "half_even", "down", "up", "whole"], expected))
    turned = {
        name: sides(size[::-1], canvas[::-1], name, limits)[1 - axis]
        for name in transforms.ROUNDINGS
    }
    assert turned == found


def test_the_longer_side_may_miss_its_canvas_as_it_does_in_the_reference():
    """606 * (640 / 606) is 639.9999999999999, which YOLOv5 cuts to 639 px; 533 gives 640.0..1."""
    assert sides((606, 606), (640, 640), "down") == (639, 639)
    assert sides((533, 533), (640, 640), "up") == (640, 640)  # and not 641
    for rounding in ("half_up", "half_even", "whole"):
        for side in range(32, 1400, 7):
            assert sides((side, side), (640, 640), rounding) == (640, 640)


def test_pictures_are_made_smaller_as_asked_and_larger_in_one_way():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    record = {**painted.record(32, 48), "image": image}
    blocks = image.reshape(8, 4, 12, 4, 3).astype(float)
    linear, area = (
        transforms.resize_fixed(record, 8, 12, shrink=shrink)["image"]
        for shrink in ("linear", "area")
    )
    assert abs(area - blocks.mean(axis=(1, 3))).max() <= 0.51  # one rounding
    assert abs(linear - blocks[:, 1:3, :, 1:3].mean(axis=(1, 3))).max() <= 1.01  # OpenCV: two
    for size in ((64, 96), (33, 48), (16, 49)):
        one, other = (
            transforms.resize_fixed(record, *size, shrink=shrink)["image"]
            for shrink in ("linear", "area")
        )
        np.testing.assert_array_equal(one, other)


def test_box_at_the_border_stays_inside():
    for width in range(50, 90):
        record = painted.record(41, width, box=(3, 3, width, 41))
        moved = transforms.resize_keep_ratio(record, 77, 77)
        height, width = moved["image_size"]
        assert (moved["boxes"] <= [width, height, width, height]).all()


def test_pad_fills_right_and_bottom():
    record = painted.record(37, 50)
    moved = transforms.pad(record, (40, 64), (1, 2, 3))
    np.testing.assert_array_equal(moved["image"][:37, :50], record["image"])
    assert (moved["image"][37:] == [1, 2, 3]).all() and (moved["image"][:, 50:] == [1, 2, 3]).all()
    assert moved["image_size"] == (37, 50)
    np.testing.assert_array_equal(moved["boxes"], record["boxes"])
    with pytest.raises(ValueError, match="an image of 37x50 px does not fit"):
        transforms.pad(record, (36, 64), 0)


def test_pad_writes_to_a_given_array():
    record = painted.record(37, 50)
    out = np.full((40, 64, 3), 9, np.uint8)
    moved = transforms.pad(record, (40, 64), (1, 2, 3), out)
    assert moved["image"] is out
    expected = transforms.pad(record, (40, 64), (1, 2, 3))["image"]
    np.testing.assert_array_equal(out, expected)


def test_fill_takes_one_number_or_three_and_parts():
    image = np.zeros((3, 4, 3), np.uint8)
    transforms.fill(image[:, 2:], (1, 2, 3))
    transforms.fill(image[2:, :2], 7)
    transforms.fill(image[:0], 9)
    assert (image[:, 2:] == [1, 2, 3]).all() and (image[2, :2] == 7).all()
    assert not image[:2, :2].any()


def test_flip_probability():
    record = painted.record(20, 40, box=(0, 0, 5, 5))
    rng = np.random.default_rng(0)
    flipped = [
        (transforms.flip_horizontal(0.25)(record, rng)["boxes"][0, 0] > 0) for _ in range(2000)
    ]
    # Standard deviation of the mean: sqrt(.25 * .75 / 2000) = 0.0097; four of them.
    assert abs(np.mean(flipped) - 0.25) < 0.04
    assert transforms.flip_vertical(0.0)(record, rng) is record
    assert transforms.flip_vertical(1.0)(record, rng)["boxes"][0, 1] == 15


def test_the_given_record_is_not_changed():
    record = painted.record(37, 50)
    before = {name: np.copy(value) for name, value in record.items()}
    moved = transforms.pad(transforms.mirror_horizontal(record), (40, 64), 0)
    moved["image"][:] = 9
    transforms.resize_fixed(record, 20, 20)["boxes"][:] = 0
    for name, value in before.items():
        np.testing.assert_array_equal(record[name], value)


def test_image_without_boxes_passes():
    record = {**painted.record(37, 50), "boxes": np.zeros((0, 4), np.float32), "area": np.zeros(0)}
    moved = transforms.mirror_horizontal(transforms.resize_keep_ratio(record, 80, 80))
    assert moved["boxes"].shape == (0, 4)


def test_a_letterbox_scales_as_the_square_around_it_where_the_rounded_sides_fit():
    """1024x820 px on 640x640 has a side of 512.5 px, which some rules round to 512."""
    rules = dict(half_up=(512, 639), half_even=(512, 640), down=(512, 640), up=(512, 640))
    found = {name: transforms.letterbox_sides((820, 1024), (512, 640), name) for name in rules}
    assert found == rules
    for canvas in ((640, 640), (544, 640)):
        assert transforms.letterbox_sides((820, 1024), canvas, "half_up") == (513, 640)
    assert transforms.letterbox_sides((1024, 820), (512, 640), "half_even") == (512, 410)
    assert transforms.letterbox_sides((1, 5000), (640, 640)) == (1, 640)


@pytest.mark.parametrize("rounding", transforms.ROUNDINGS)
@pytest.mark.parametrize("size", [(37, 120), (120, 37), (64, 64), (1, 99), (101, 113)])
def test_letterbox_halves_the_border_as_yolov5_and_darknet(size, rounding):
    canvas = (101, 113)
    record = painted.record(*size, box=(0, 0, 1, 1))
    moved = transforms.letterbox(record, *canvas, pad_value=(1, 2, 3), rounding=rounding)
    height, width = sides(size, canvas, rounding)
    # yolov5/utils/augmentations.py: left, right = round(dw - 0.1), round(dw + 0.1), dw in halves.
    top, left = round((101 - height) / 2 - 0.1), round((113 - width) / 2 - 0.1)
    assert (top, left) == ((101 - height) // 2, (113 - width) // 2)  # darknet/src/image.c
    shift = [left, top]
    if rounding == "whole":  # darknet/src/yolo_layer.c, correct_yolo_boxes
        shift = [(113 - width) / 2, (101 - height) / 2]
    np.testing.assert_array_equal(moved["placement"][2:], shift)
    np.testing.assert_allclose(moved["boxes"][0, :2], [left, top])
    assert moved["image"].shape == (101, 113, 3) and moved["image_size"] == canvas
    border = np.ones(canvas, bool)
    border[top : top + height, left : left + width] = False
    assert (moved["image"][border] == [1, 2, 3]).all()


# ------------------------------------------------------------------------------------------------
# Expand and crops


def assert_placement_leads_to_the_origin(record, original):
    """Every pixel has the colour of the place in the original from which the placement maps to it.

    Bilinear interpolation keeps linear images linear, so colours give coordinates.  OpenCV's
    fixed-point arithmetic is off by up to 3/4 of a level of 2x, 0.375 px; 0.02 px is for its
    weights.  Pixels of the outermost colours are skipped: the border is repeated there.

    Returns:
      [4] xyxy px: the rectangle that shows the original.
    """
    image = record["image"].astype(np.float64)
    shown = image[..., 2] == 255
    sx, sy, tx, ty = record["placement"]
    for axis, channel, scale, shift in ((1, 0, sx, tx), (0, 1, sy, ty)):
        place = (np.arange(image.shape[axis]) + 0.5 - shift) / scale
        place = np.broadcast_to(np.expand_dims(place, 1 - axis), shown.shape)
        colours = image[..., channel]
        looked_at = shown & (colours > colours[shown].min()) & (colours < colours[shown].max())
        np.testing.assert_array_less(abs(colours / 2 - place)[looked_at], 0.395)
    columns, rows = np.flatnonzero(shown.any(axis=0)), np.flatnonzero(shown.any(axis=1))
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


RANDOM = {
    "expand": transforms.expand(1.0, 4.0),
    "crop": transforms.crop_random(1.0, (0.3, 1.0)),
    "min-iou": transforms.crop_min_iou((0.1, 0.3, 0.5, 0.7, 0.9)),
    "center": transforms.crop_center(90, (0.6, 1.0, 1.3), 40),
    "jitter": transforms.crop_jitter(0.3),
}
DRAWN = {
    "own": lambda r, rng: transforms.draw_window(r, 50),
    "stretch": lambda r, rng: transforms.resize_fixed(r, 83, 71, 50),
    "flips+pad": lambda r, rng: transforms.pad(
        transforms.flip_vertical(0.5)(
            transforms.flip_horizontal(0.5)(
                transforms.resize_keep_ratio(r, 90, 120, None, 50), rng
            ),
            rng,
        ),
        (90, 120),
        50,
    ),
    "limits": lambda r, rng: transforms.resize_keep_ratio(r, 200, 200, (133, 80), 50),
    "letterbox": lambda r, rng: transforms.letterbox(r, 101, 113, 50),
}


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize(
    "names",
    [["expand"], ["crop"], ["min-iou"], ["center"], ["jitter"]]
    + [["expand", "crop"], ["expand", "min-iou"]],
    ids="+".join,
)
def test_windows_move_boxes_and_placement_with_the_pixels(names, drawn):
    clipped = 0
    for seed in range(40):
        size = SIZES[seed % len(SIZES)]
        original = painted.record(*size, box=(10, 4, 30, 28) if seed % 2 else (40, 2, 70, 36))
        results = []
        for record in (original, painted.coordinates(original)):
            rng = np.random.default_rng(seed)
            for name in names:
                record = RANDOM[name](record, rng)
            results.append(DRAWN[drawn](record, rng))
        painted.assert_white_is_the_box(results[0])
        shown = assert_placement_leads_to_the_origin(results[1], original)
        # The box is the visible part of the annotated box after the placement.
        sx, sy, tx, ty = results[0]["placement"]
        corners = original["boxes"].reshape(2, 2) * [sx, sy] + [tx, ty]
        mapped = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        expected = np.clip(mapped, np.tile(shown[:2], 2), np.tile(shown[2:], 2))
        clipped += (abs(expected - mapped) > 1e-3).any()
        # 1e-4 px: a few roundings of float32 on coordinates below 500.
        np.testing.assert_allclose(results[0]["boxes"][0], expected, atol=1e-4)
        width, height = results[0]["boxes"][0, 2:] - results[0]["boxes"][0, :2]
        np.testing.assert_allclose(results[0]["area"], [width * height], rtol=1e-4)
        assert {results[0][name].dtype for name in ("boxes", "area", "placement")} == {
            np.dtype(np.float32)
        }
    assert clipped == 0 if names == ["expand"] else clipped > 0


def test_a_window_by_hand():
    record = {**painted.record(64, 96), "index": 3, "flags": np.array([[1, 2]], np.int32)}
    half = transforms.crop(record, (20, 0, 60, 16))  # the centre of 10..30 is on the edge
    assert half["boxes"].shape == (0, 4) and half["flags"].shape == (0, 2)
    cropped = transforms.draw_window(transforms.crop(record, (15, 8, 55, 64)), 0)
    np.testing.assert_array_equal(cropped["image"], record["image"][8:64, 15:55])
    np.testing.assert_array_equal(cropped["boxes"], [[0, 0, 15, 20]])
    np.testing.assert_array_equal(cropped["area"], [300])
    np.testing.assert_array_equal(cropped["placement"], [1, 1, -15, -8])
    np.testing.assert_array_equal(cropped["flags"], [[1, 2]])
    assert cropped["image_size"] == (56, 40) and cropped["index"] == 3 and "window" not in cropped
    beyond = transforms.resize_fixed({**record, "window": (-10, -4, 96, 68)}, 144, 212, (7, 8, 9))
    np.testing.assert_array_equal(beyond["boxes"], [[40, 16, 80, 64]])
    np.testing.assert_array_equal(beyond["placement"], [2, 2, 20, 8])
    assert (beyond["image"][:8] == [7, 8, 9]).all() and (beyond["image"][-8:] == [7, 8, 9]).all()
    assert (beyond["image"][:, :20] == [7, 8, 9]).all() and (beyond["image"][8:-8, 20:] != 7).all()


def test_a_window_must_be_drawn_before_anything_else_moves_the_pixels():
    record = transforms.crop(painted.record(64, 96), (0, 0, 50, 50))
    for transform in (
        transforms.mirror_horizontal,
        lambda r: transforms.pad(r, (64, 96), 0),
        lambda r: transforms.cut_out(1.0, (1, 1), (0.1, 0.1), 0)(r, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match="the window .0, 0, 50, 50. is not drawn yet"):
            transform(record)


def test_a_large_photograph_is_never_enlarged_in_memory():
    record = painted.record(3000, 4000)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        larger = transforms.expand(1.0, 4.0)(record, rng)
        moved = transforms.resize_keep_ratio(larger, 300, 300, pad_value=124)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert larger["window"][2] - larger["window"][0] > 7000
    assert moved["image"].shape == (225, 300, 3)
    assert peak < 2e6  # bytes; 4 x 4 of this photograph is 576 MB


def many(transform, record, count=2000):
    rng = np.random.default_rng(0)
    return [transform(record, rng) for _ in range(count)]


def empty_record(height, width):
    record = painted.record(height, width)
    keep = ("boxes", "labels", "ignore", "area")
    return {name: value[:0] if name in keep else value for name, value in record.items()}


def test_expand_draws_ratio_and_place_uniformly():
    record = empty_record(500, 1000)
    results = many(transforms.expand(0.5, 4.0), record)
    windows = np.array([r["window"] for r in results if r is not record])
    # Four standard deviations of each mean: sqrt(.25 / 2000) = 0.011; 3 / sqrt(12 * 1000) = 0.027,
    # 1 / sqrt(12 * 1000) = 0.009.
    assert abs(len(windows) / 2000 - 0.5) < 0.045
    sides = windows[:, 2:] - windows[:, :2]
    ratio = sides / [1000, 500]
    np.testing.assert_allclose(ratio[:, 0], ratio[:, 1], atol=2e-3)  # whole px
    assert ratio.min() >= 0.998 and ratio.max() <= 4
    assert abs(ratio.mean() - 2.5) < 0.11 and ratio.min() < 1.05 and ratio.max() > 3.95
    place = -windows[:, :2] / np.maximum(sides - [1000, 500], 1)
    assert (windows[:, :2] <= 0).all() and (place <= 1).all()
    np.testing.assert_allclose(place.mean(axis=0), 0.5, atol=0.037)
    # Every tenth of the range is equally likely: 100 +- 4 * sqrt(100 * .9).
    counts = np.histogram(place[:, 0], bins=10, range=(0, 1))[0]
    assert abs(counts - len(windows) / 10).max() < 38


def test_random_crop_draws_sides_and_place_uniformly():
    record = empty_record(500, 1000)
    results = many(transforms.crop_random(0.5, (0.3, 0.8)), record)
    windows = np.array([r["window"] for r in results if r is not record])
    assert abs(len(windows) / 2000 - 0.5) < 0.045
    part = (windows[:, 2:] - windows[:, :2]) / [1000, 500]
    assert part.min() >= 0.299 and part.max() <= 0.801  # whole px
    np.testing.assert_allclose(part.mean(axis=0), 0.55, atol=0.019)  # 4 * .5 / sqrt(12 * 1000)
    assert abs(np.corrcoef(part.T)[0, 1]) < 4 / np.sqrt(1000)  # independent sides
    place = windows[:, :2] / ([1000, 500] * (1 - part))
    np.testing.assert_allclose(place.mean(axis=0), 0.5, atol=0.037)
    assert place.min() >= 0 and place.max() <= 1 + 1e-9


def test_center_crop_is_a_square_around_a_point_that_keeps_its_distance():
    record = empty_record(200, 1000)  # twice the border exceeds 200 px, so it is halved to 64 px
    results = many(transforms.crop_center(100, (0.5, 3.0), 128), record)
    windows = np.array([r["window"] for r in results])
    sides = windows[:, 2:] - windows[:, :2]
    assert set(map(tuple, sides)) == {(50, 50), (300, 300)}
    assert abs((sides[:, 0] == 50).mean() - 0.5) < 0.045
    centres = (windows[:, :2] + windows[:, 2:]) / 2
    low, high = centres.min(axis=0), centres.max(axis=0)
    assert (low >= [128, 64]).all() and (high <= [1000 - 128, 200 - 64]).all()
    np.testing.assert_allclose(low, [128, 64], atol=4)  # uniform: the ends are reached
    np.testing.assert_allclose(high, [872, 136], atol=4)
    assert (windows[:, 1] < 0).any(), "squares reach beyond the picture"


def some_objects():
    """Three objects in an image of 100 x 160 px; the second is ignored."""
    return {
        **painted.record(100, 160),
        "boxes": np.array([(10, 10, 40, 50), (50, 20, 150, 90), (100, 5, 120, 35)], np.float32),
        "labels": np.array([4, 5, 6], np.int32),
        "ignore": np.array([False, True, False]),
        "area": np.array([600, 7000, 600], np.float32),
        "flags": np.arange(6, dtype=np.int32).reshape(3, 2),
    }


@pytest.mark.parametrize("name", ["crop", "min-iou", "center"])
def test_a_crop_keeps_what_has_its_centre_inside_and_shows_an_object_to_learn(name):
    transform, record = RANDOM[name], some_objects()
    centres = (record["boxes"][:, :2] + record["boxes"][:, 2:]) / 2
    ignored = 0
    for cropped in many(transform, record, 500):
        x1, y1, x2, y2 = cropped.get("window", (0, 0, 160, 100))
        inside = ((centres > [x1, y1]) & (centres < [x2, y2])).all(axis=1)
        np.testing.assert_array_equal(cropped["labels"], record["labels"][inside])
        np.testing.assert_array_equal(cropped["flags"], record["flags"][inside])
        assert not cropped["ignore"].all() and len(cropped["boxes"])
        ignored += cropped["ignore"].sum()
        limits = np.clip(record["boxes"][inside], [x1, y1, x1, y1], [x2, y2, x2, y2])
        np.testing.assert_array_equal(cropped["boxes"], limits)
        share = records.box_areas(limits) / records.box_areas(record["boxes"][inside])
        np.testing.assert_allclose(cropped["area"], record["area"][inside] * share, rtol=1e-6)
    assert 0 < ignored < 500


def test_jitter_moves_each_side_by_itself_and_keeps_whatever_shows():
    record = {
        **some_objects(),
        "boxes": np.array([(0, 0, 8, 8), (60, 40, 90, 60), (155, 0, 160, 9)]),
    }
    results = many(transforms.crop_jitter(0.2), record)
    windows = np.array([r["window"] for r in results])
    moved = (windows - [0, 0, 160, 100]) / [160, 100, 160, 100]
    assert moved.min() >= -0.2 and moved.max() <= 0.2
    # Four standard deviations of a mean of 2000, and of a correlation.
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=4 * 0.4 / np.sqrt(12 * 2000))
    assert abs(np.corrcoef(moved.T) - np.eye(4)).max() < 4 / np.sqrt(2000)
    for cropped, (x1, y1, x2, y2) in zip(results, windows):
        limits = np.clip(record["boxes"], [x1, y1, x1, y1], [x2, y2, x2, y2])
        shows = records.box_areas(limits) > 0
        np.testing.assert_array_equal(cropped["labels"], record["labels"][shows])
        np.testing.assert_array_equal(cropped["boxes"], limits[shows])
    counts = np.bincount([len(r["boxes"]) for r in results])
    assert counts[2] > 200 and counts[3] > 200


def test_a_crop_that_finds_no_object_leaves_the_picture_whole():
    record = painted.record(1000, 1000, box=(0, 0, 2, 2))
    assert transforms.crop_random(1.0, (0.01, 0.02))(record, np.random.default_rng(0)) is record


class Chooses(np.random.Generator):
    """A generator whose `integers` always gives one number."""

    def __init__(self, seed, number):
        super().__init__(np.random.PCG64(seed))
        self.number = number

    def integers(self, *_):
        return self.number


@pytest.mark.parametrize("choice, min_iou", [(1, 0.1), (2, 0.3), (3, 0.5), (4, 0.7), (5, 0.9)])
def test_min_iou_crop_has_its_iou_with_every_object_to_learn(choice, min_iou):
    record = painted.record(100, 160, box=(10, 5, 140, 90))
    record["boxes"] = np.array([(10, 5, 140, 90), (5, 8, 150, 95), (0, 0, 5, 5)], np.float32)
    record.update(labels=np.arange(3), area=np.ones(3), ignore=np.array([False, False, True]))
    for seed in range(20):
        cropped = RANDOM["min-iou"](record, Chooses(seed, choice))
        x1, y1, x2, y2 = cropped["window"]
        assert 0.5 <= (x2 - x1) / (y2 - y1) <= 2
        assert x2 - x1 >= 0.3 * 160 - 1 and y2 - y1 >= 0.3 * 100 - 1  # whole px
        for left, top, right, bottom in record["boxes"][:2].tolist():
            overlap = max(min(right, x2) - max(left, x1), 0) * max(
                min(bottom, y2) - max(top, y1), 0
            )
            union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - overlap
            assert overlap / union >= min_iou


def test_min_iou_crop_makes_each_choice_as_often():
    record = empty_record(50, 50)  # where any window will do
    whole = sum(r is record for r in many(transforms.crop_min_iou((0.1, 0.3, 0.5)), record))
    assert abs(whole / 2000 - 1 / 5) < 4 * np.sqrt(0.2 * 0.8 / 2000)
    assert RANDOM["min-iou"](record, Chooses(0, 0)) is record
    assert "window" in RANDOM["min-iou"](record, Chooses(0, 6))


def test_a_crop_of_an_expanded_picture_without_objects_shows_some_of_the_picture():
    record = {**empty_record(40, 40), "window": (-300, -300, 100, 100)}
    for transform in (transforms.crop_random(1.0, (0.1, 0.2)), RANDOM["min-iou"]):
        for cropped in many(transform, record, 200):
            x1, y1, x2, y2 = cropped["window"]
            assert x1 < 40 and y1 < 40 and x2 > 0 and y2 > 0


# ------------------------------------------------------------------------------------------------
# Colours


def colours(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3)).astype(np.uint8)


def reference_distort(pixel, brightness, contrast, saturation, hue, contrast_last):
    """One pixel in Python floats, by the formulas of the docstring."""
    pixel = [x + brightness for x in pixel]
    pixel = pixel if contrast_last else [x * contrast for x in pixel]
    pixel = [min(max(x, 0), 255) for x in pixel]
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    pixel = colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v)
    pixel = [x * contrast for x in pixel] if contrast_last else pixel
    return [min(max(x, 0), 255) for x in pixel]


@pytest.mark.parametrize("seed", range(4))
def test_distortion_follows_its_formulas(seed):
    rng = np.random.default_rng(seed)
    amounts = rng.uniform([-32, 0.5, 0.5, -18], [32, 1.5, 1.5, 18])
    image = colours(seed)[:10]
    moved = transforms.distort(image, *amounts, contrast_last=seed % 2 == 0)
    expected = [
        reference_distort(p, *amounts, seed % 2 == 0) for p in image.reshape(-1, 3).tolist()
    ]
    # Half a level of rounding; 0.01 for float32 and OpenCV's epsilon in the hue.
    np.testing.assert_allclose(moved.reshape(-1, 3), expected, atol=0.51)


def test_distortion_by_hand():
    image = colours()
    np.testing.assert_array_equal(transforms.distort(image), image)
    wide = image.astype(int)
    np.testing.assert_array_equal(transforms.distort(image, 20), np.clip(wide + 20, 0, 255))
    np.testing.assert_array_equal(transforms.distort(image, -20), np.clip(wide - 20, 0, 255))
    half_to_even = np.rint(wide * 0.5)
    np.testing.assert_array_equal(transforms.distort(image, contrast=0.5), half_to_even)
    # A third of the circle of hues turns red to green; nothing turns grey.
    np.testing.assert_array_equal(transforms.distort(image, hue=120), image[..., [2, 0, 1]])
    np.testing.assert_array_equal(transforms.distort(image, hue=-120), image[..., [1, 2, 0]])
    np.testing.assert_array_equal(transforms.distort(image, hue=360), image)
    grey = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(transforms.distort(grey, saturation=1.5, hue=17), grey)
    value = np.broadcast_to(image.max(axis=2, keepdims=True), image.shape)
    np.testing.assert_array_equal(transforms.distort(image, saturation=0), value)
    np.testing.assert_array_equal(
        transforms.distort(image, channels=(2, 0, 1)), image[..., [2, 0, 1]]
    )


def test_dark_colours_do_not_turn_light():
    image = np.array([[[0, 3, 30]]], np.uint8)  # all negative after the brightness
    assert (transforms.distort(image, -32, saturation=1.5) == 0).all()


def test_photometric_draws_each_part_half_of_the_time():
    record = {**painted.record(2, 2), "image": np.full((2, 2, 3), 100, np.uint8)}
    half = 4 * np.sqrt(0.25 / 2000)  # four standard deviations

    def levels(*spread, probability=1.0, image=record["image"]):
        moved = many(transforms.photometric(probability, *spread), {**record, "image": image})
        return np.array([r["image"][0, 0] for r in moved], int)

    grey = levels(40, 0, 0, 0)[:, 0] - 100
    assert abs((grey == 0).mean() - 0.5 - 0.5 / 80) < half  # brightness rounds to 0 too
    assert grey.min() >= -40 and grey.max() <= 40 and np.ptp(grey) > 76
    assert abs(grey.mean()) < 4 * 40 / np.sqrt(3 * 2 * 2000)
    assert abs((levels(40, 0, 0, 0, probability=0.4)[:, 0] != 100).mean() - 0.2) < half
    grey = levels(0, 0.5, 0, 0)[:, 0]
    assert grey.min() >= 50 and grey.max() <= 150 and np.ptp(grey) > 95
    assert abs((grey == 100).mean() - 0.5 - 0.5 / 100) < half
    red = np.broadcast_to(np.array([200, 100, 100], np.uint8), (2, 2, 3))
    orders = levels(0, 0, 0, 0, image=red)  # half are permuted; red stays first in a third of those
    assert abs((orders[:, 0] == 200).mean() - (0.5 + 0.5 / 3)) < half
    spread = np.sort(levels(0, 0, 0.5, 0, image=red), axis=1)
    assert (spread[:, 2] == 200).all() and spread.min() >= 50 and spread[:, 0].max() <= 150
    assert abs((spread[:, 0] == 100).mean() - 0.5 - 0.5 / 100) < half
    spread = np.sort(levels(0, 0, 0, 30, image=red), axis=1)
    assert (spread[:, [0, 2]] == [100, 200]).all() and spread[:, 1].max() in (149, 150)
    assert abs((spread[:, 1] == 100).mean() - 0.5 - 0.5 / 100) < half


def reference_hsv(pixel):
    """OpenCV's HSV of 8 bits of one pixel: hue in steps of 2 degrees."""
    h, s, v = colorsys.rgb_to_hsv(*(int(x) / 255 for x in pixel))
    return round(h * 180) % 180, round(s * 255), round(v * 255)


def reference_rgb(h, s, v):
    return [255 * x for x in colorsys.hsv_to_rgb(h / 180, s / 255, v / 255)]


@pytest.mark.parametrize("form, gains", [("yolov5", (0.1, 0.7, 0.4)), ("darknet", (0.1, 1.5, 1.5))])
def test_hsv_follows_the_formulas_of_its_original(form, gains):
    image = colours()[:12]
    wrong = np.zeros(2)
    for seed in range(6):
        moved = transforms.hsv(1.0, gains, form)({"image": image}, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.random()  # for the probability
        u = rng.uniform(-1, 1, 3)
        expected = []
        for pixel in image.reshape(-1, 3):
            h, s, v = reference_hsv(pixel)
            if form == "yolov5":  # random_hsv: multiplied, cut off at 8 bits
                h = int(h * (1 + u[0] * gains[0])) % 180
                s = int(min(s * (1 + u[1] * gains[1]), 255))
                v = int(min(v * (1 + u[2] * gains[2]), 255))
            else:  # rand_scale: 1..s or its inverse
                h = (h + round(u[0] * gains[0] * 180)) % 180
                factors = [1 + abs(x) * (gain - 1) for x, gain in zip(u[1:], gains[1:])]
                factors = [f if x >= 0 else 1 / f for f, x in zip(factors, u[1:])]
                s, v = (min(round(x * f), 255) for x, f in zip((s, v), factors))
            expected.append(reference_rgb(h, s, v))
        error = abs(moved["image"].reshape(-1, 3) - np.array(expected))
        # One level of rounding, in OpenCV's conversion back to RGB.  One pixel in 40 has a hue or a
        # saturation that OpenCV rounds to the neighbour: up to 255 / 30 levels, or twice as many
        # if the factor separates the neighbours.
        assert np.median(error) < 0.5 and error.max() < 18
        wrong += [(error > 1.01).mean(), (error > 9).mean()]
    assert (wrong / 6 < [0.03, 1e-3]).all()


def test_hsv_by_hand():
    rng = np.random.default_rng(0)
    image = colours()
    unchanged = transforms.recolour(image, np.repeat(np.arange(256.0)[:, None], 3, axis=1))
    assert abs(unchanged.astype(int) - image).max() <= 5  # hue in steps of 2 degrees
    for form in ("yolov5", "darknet"):
        nothing = (0, 0, 0) if form == "yolov5" else (0, 1, 1)
        moved = transforms.hsv(1.0, nothing, form)({"image": image}, rng)
        np.testing.assert_array_equal(moved["image"], unchanged)
        assert transforms.hsv(0.0, nothing, form)({"image": image}, rng)["image"] is image
    grey = np.full((4, 4, 3), 100, np.uint8)
    for moved in many(transforms.hsv(1.0, (1.0, 1.0, 0.0), "yolov5"), {"image": grey}, 20):
        np.testing.assert_array_equal(moved["image"], grey)  # no hue, no saturation
    levels = np.arange(256.0)
    a_third_on = np.stack([(levels + 60) % 180, levels, levels / 2], axis=1)
    red = np.array([[[201, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(transforms.recolour(red, a_third_on), [[[0, 100, 0]]])  # cut off


def test_hsv_draws_its_factors_uniformly():
    record = {"image": np.full((1, 1, 3), 100, np.uint8)}
    grey = [r["image"][0, 0, 0] for r in many(transforms.hsv(0.5, (0, 0, 0.4), "yolov5"), record)]
    grey = np.array(grey, float)
    changed = grey[grey != 100]
    # Four standard deviations: sqrt(.25 / 2000) = 0.011; 80 / sqrt(12 * 1000) = 0.73.
    assert abs(len(changed) / 2000 - 0.5 + 0.5 / 80) < 0.045
    assert grey.min() >= 60 and grey.max() < 140 and np.ptp(grey) > 76
    assert abs(changed.mean() - 99.5) < 2.9  # half a level is cut off on average
    grey = [r["image"][0, 0, 0] for r in many(transforms.hsv(1, (0, 1, 1.5), "darknet"), record)]
    grey = np.array(grey, float)
    assert grey.min() >= 67 and grey.max() <= 150 and np.ptp(grey) > 80
    assert abs((grey > 100).mean() - 0.5 + 0.5 / 50) < 0.045  # multiplied as often as divided
    assert abs(grey[grey > 100].mean() - 125) < 4 * 50 / np.sqrt(12 * 950) + 0.5


# ------------------------------------------------------------------------------------------------
# Holes


def test_cut_out_fills_rectangles_of_the_given_sizes_and_keeps_the_boxes():
    record = {**painted.record(100, 200), "image": np.full((100, 200, 3), 9, np.uint8)}
    centres = []
    for moved in many(transforms.cut_out(1.0, (1, 1), (0.1, 0.3), (1, 2, 3)), record, 500):
        hole = (moved["image"] == [1, 2, 3]).all(axis=2)
        assert ((moved["image"] == 9).all(axis=2) ^ hole).all()
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)
        assert len(rows) <= 30 and len(columns) <= 60
        if rows[0] > 0 and rows[-1] < 99:
            assert len(rows) >= 10
        centres.append(((rows[0] + rows[-1] + 1) / 200, (columns[0] + columns[-1] + 1) / 400))
        assert moved["boxes"] is record["boxes"]
    # The centre of the visible part, symmetric over the picture: 4 / sqrt(12 * 500) = 0.052.
    np.testing.assert_allclose(np.mean(centres, axis=0), 0.5, atol=0.052)


def test_cut_out_draws_the_number_of_holes_and_whether_there_are_any():
    record = painted.record(200, 200)
    moved = many(transforms.cut_out(0.5, (2, 3), (0.005, 0.005), 77), record, 400)
    counts = np.array([(r["image"] == 77).all(axis=2).sum() for r in moved])  # holes of 1 px
    assert set(counts) <= {0, 1, 2, 3}
    assert abs((counts == 0).mean() - 0.5) < 4 * np.sqrt(0.25 / 400)
    assert (counts == 2).sum() > 60 and (counts == 3).sum() > 60


# ------------------------------------------------------------------------------------------------
# All random transforms


ALL = {
    **RANDOM,
    "photometric": transforms.photometric(1.0, 32, 0.5, 0.5, 18),
    "hsv": transforms.hsv(1.0, (0.015, 0.7, 0.4), "yolov5"),
    "hsv of darknet": transforms.hsv(1.0, (0.1, 1.5, 1.5), "darknet"),
    "cut-out": transforms.cut_out(1.0, (1, 5), (0.05, 0.2), 114),
    "flip": transforms.flip_horizontal(0.5),
}


@pytest.mark.parametrize("name", ALL)
def test_random_transforms_depend_on_the_generator_alone_and_leave_their_record(name):
    record = {**some_objects(), "image": colours()[:, :40]}
    record["boxes"] = record["boxes"] / 4
    before = {key: np.copy(value) for key, value in record.items()}

    def results(seed):
        moved = [ALL[name](record, np.random.default_rng([seed, k])) for k in range(20)]
        return [transforms.draw_window(r, 0) for r in moved]

    first, again, other = results(0), results(0), results(1)
    for a, b in zip(first, again, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert any(
        a["image"].shape != b["image"].shape or (a["image"] != b["image"]).any()
        for a, b in zip(first, other, strict=True)
    )
    for key, value in before.items():
        np.testing.assert_array_equal(record[key], value)


@pytest.mark.parametrize("name", ALL)
def test_random_transforms_pass_images_without_boxes(name):
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = transforms.draw_window(ALL[name](empty_record(37, 50), rng), 0)
        assert moved["boxes"].shape == (0, 4) and moved["image"].size

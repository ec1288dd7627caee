"""Transforms move boxes and placement exactly with the pixels."""

import numpy as np
import pytest

from detlab.data import transforms

SIZES = [(64, 96), (65, 97), (37, 120)]
BOX = (10, 4, 30, 28)


def make_record(height, width, box=BOX):
    """A black picture with the box white."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return {
        "image": image,
        "boxes": np.array([box], np.float32),
        "labels": np.zeros(1, np.int32),
        "ignore": np.zeros(1, bool),
        "area": np.array([(x2 - x1) * (y2 - y1)], np.float32),
        "index": 0,
    }


def assert_white_is_the_box(record):
    """White are the columns and rows whose centre lies in the box.

    Bilinear interpolation crosses half way between black and white on the edge of the box, so this
    holds for any ratio; centres within 0.02 px of an edge are not looked at, as OpenCV rounds its
    weights to 1/2048.
    """
    for axis, name in ((0, "columns"), (1, "rows")):
        low, high = record["boxes"][0][axis::2]
        profile = record["image"][..., 0].max(axis=axis) > 127
        centre = np.arange(len(profile)) + 0.5
        inside = (centre > low) & (centre < high)
        near = np.minimum(abs(centre - low), abs(centre - high)) < 0.02
        assert inside.any()
        np.testing.assert_array_equal(profile | near, inside | near, err_msg=name)


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
    ],
    ids=["h", "v", "hv", "x2", "half", "fixed", "ratio", "ratio+h", "h+stretch", "v+pad"],
)
def test_box_and_placement_follow_the_pixels(size, transform):
    record = make_record(*size)
    moved = transform(record)
    assert_white_is_the_box(moved)
    assert_placement_maps_the_box(moved, record)
    assert moved["boxes"].dtype == moved["placement"].dtype == moved["area"].dtype == np.float32
    sx, sy = moved["placement"][:2]
    np.testing.assert_allclose(moved["area"], record["area"] * abs(sx * sy), rtol=1e-5)


def test_half_and_double_of_an_even_box_are_exact():
    record = make_record(64, 96)
    half = transforms.resize_fixed(record, 32, 48)
    np.testing.assert_array_equal(half["boxes"], [[5, 2, 15, 14]])
    np.testing.assert_array_equal(half["image"], make_record(32, 48, (5, 2, 15, 14))["image"])
    double = transforms.resize_fixed(record, 128, 192)
    np.testing.assert_array_equal(double["boxes"], [[20, 8, 60, 56]])
    np.testing.assert_array_equal(double["placement"], [2, 2, 0, 0])


def test_flip_by_hand():
    moved = transforms.mirror_horizontal(make_record(64, 96))
    np.testing.assert_array_equal(moved["boxes"], [[66, 4, 86, 28]])
    np.testing.assert_array_equal(moved["placement"], [-1, 1, 96, 0])
    moved = transforms.mirror_vertical(make_record(64, 96))
    np.testing.assert_array_equal(moved["boxes"], [[10, 36, 30, 60]])
    np.testing.assert_array_equal(moved["placement"], [1, -1, 0, 64])


def test_two_flips_give_the_record_back():
    record = make_record(37, 120)
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
    record = make_record(*size, box=(0, 0, 1, 1))
    moved = transforms.resize_keep_ratio(record, 800, 1344, limits)
    assert moved["image"].shape[:2] == moved["image_size"] == expected
    ratios = [expected[1] / size[1], expected[0] / size[0]]  # the actual ones, axis by axis
    np.testing.assert_allclose(moved["placement"], [*ratios, 0, 0], rtol=1e-6)


def test_box_at_the_border_stays_inside():
    for width in range(50, 90):
        record = make_record(41, width, box=(3, 3, width, 41))
        moved = transforms.resize_keep_ratio(record, 77, 77)
        height, width = moved["image_size"]
        assert (moved["boxes"] <= [width, height, width, height]).all()


def test_pad_fills_right_and_bottom():
    record = make_record(37, 50)
    moved = transforms.pad(record, (40, 64), (1, 2, 3))
    np.testing.assert_array_equal(moved["image"][:37, :50], record["image"])
    assert (moved["image"][37:] == [1, 2, 3]).all() and (moved["image"][:, 50:] == [1, 2, 3]).all()
    assert moved["image_size"] == (37, 50)
    np.testing.assert_array_equal(moved["boxes"], record["boxes"])
    with pytest.raises(ValueError, match="37x50 px does not fit"):
        transforms.pad(record, (36, 64), 0)


def test_flip_probability():
    record = make_record(20, 40, box=(0, 0, 5, 5))
    rng = np.random.default_rng(0)
    flipped = [
        (transforms.flip_horizontal(0.25)(record, rng)["boxes"][0, 0] > 0) for _ in range(2000)
    ]
    # Standard deviation of the mean: sqrt(.25 * .75 / 2000) = 0.0097; four of them.
    assert abs(np.mean(flipped) - 0.25) < 0.04
    assert transforms.flip_vertical(0.0)(record, rng) is record
    assert transforms.flip_vertical(1.0)(record, rng)["boxes"][0, 1] == 15


def test_the_given_record_is_not_changed():
    record = make_record(37, 50)
    before = {name: np.copy(value) for name, value in record.items()}
    moved = transforms.pad(transforms.mirror_horizontal(record), (40, 64), 0)
    moved["image"][:] = 9
    transforms.resize_fixed(record, 20, 20)["boxes"][:] = 0
    for name, value in before.items():
        np.testing.assert_array_equal(record[name], value)


def test_image_without_boxes_passes():
    record = {**make_record(37, 50), "boxes": np.zeros((0, 4), np.float32), "area": np.zeros(0)}
    moved = transforms.mirror_horizontal(transforms.resize_keep_ratio(record, 80, 80))
    assert moved["boxes"].shape == (0, 4)

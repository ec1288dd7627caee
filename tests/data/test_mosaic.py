"""Mosaics put images with their objects side by side; mixup blends two images."""

import numpy as np
import painted
import pytest

from detlab.data import affine, mosaic

CANVAS = (60, 80)  # height, width px


def tile(number, height, width):
    """A record of one colour, with an almost white box and an ignored one on the left edge."""
    image = np.full((height, width, 3), 10 * (number + 1), np.uint8)
    box = (2 + number, 3, width - 4, height - 2 - number)
    image[box[1] : box[3], box[0] : box[2]] = 255 - number
    return {
        "image": image,
        "boxes": np.array([box, (0, 0, 2, height)], np.float32),
        "labels": np.array([number, number], np.int32),
        "ignore": np.array([False, True]),
        "area": np.array([100, 7], np.float32),
        "index": number,
    }


def tiles(count, seed):
    """Tiles of random sizes up to the canvas."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, [CANVAS[0] + 1, CANVAS[1] + 1], (count, 2))
    return [tile(number, *size.tolist()) for number, size in enumerate(sizes)]


def plane_of(place, parts, rng, pad_value=0):
    """The whole plane of a mosaic."""
    size = (2 * CANVAS[0], 2 * CANVAS[1])
    return mosaic.paste(parts, place(parts, CANVAS, rng), size, pad_value)


def assert_objects_are_what_is_painted(record):
    """Each box holds exactly the px of its tile's object, and every visible object has a box."""
    height, width = record["image"].shape[:2]
    for box, label, ignored in zip(record["boxes"], record["labels"], record["ignore"]):
        if ignored:
            continue
        x1, y1, x2, y2 = box.astype(int)
        painted_here = record["image"][..., 0] == 255 - label
        rows, columns = painted_here.any(axis=1), painted_here.any(axis=0)
        np.testing.assert_array_equal(np.flatnonzero(rows)[[0, -1]] + [0, 1], [y1, y2])
        np.testing.assert_array_equal(np.flatnonzero(columns)[[0, -1]] + [0, 1], [x1, x2])
        assert painted_here[y1:y2, x1:x2].all()
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    shown = {255 - int(v) for v in np.unique(record["image"][..., 0]) if v > 200}
    assert shown == set(record["labels"][~record["ignore"]].tolist())


@pytest.mark.parametrize("place, count", [(mosaic.four, 4), (mosaic.nine, 9)])
def test_boxes_lie_on_what_was_painted(place, count):
    for seed in range(40):
        rng = np.random.default_rng([7, seed])
        record = plane_of(place, tiles(count, seed), rng, (1, 2, 3))
        assert record["image"].shape == (120, 160, 3) and record["image_size"] == (120, 160)
        assert_objects_are_what_is_painted(record)
        ignored = record["boxes"][record["ignore"]]
        assert (ignored[:, 2:] > ignored[:, :2]).all()
        grey = (record["image"] == record["image"][..., :1]).all(axis=2)
        assert (record["image"][~grey] == [1, 2, 3]).all()
        np.testing.assert_array_equal(record["placement"], [1, 1, 0, 0])


@pytest.mark.parametrize("place, count", [(mosaic.four, 4), (mosaic.nine, 9)])
def test_tiles_lie_beside_each_other_and_never_on_each_other(place, count):
    """Tiles that are not cut off are completely visible: their px are counted."""
    whole = 0
    for seed in range(40):
        parts = tiles(count, seed)
        record = plane_of(place, parts, np.random.default_rng([8, seed]))
        for number, part in enumerate(parts):
            own = np.isin(record["image"][..., 0], [10 * (number + 1), 255 - number])
            if not own.any():
                continue
            rows, columns = own.any(axis=1), own.any(axis=0)
            assert own.sum() == rows.sum() * columns.sum()  # a rectangle without holes
            height, width = part["image"].shape[:2]
            within = not (rows[0] or rows[-1] or columns[0] or columns[-1])
            assert own.sum() == height * width or not within
            whole += within
    assert whole > 10


def test_a_mosaic_of_four_has_its_point_in_the_middle_half():
    points = []
    parts = [tile(number, *CANVAS) for number in range(4)]
    for seed in range(400):
        record = plane_of(mosaic.four, parts, np.random.default_rng(seed))
        own = np.isin(record["image"][..., 0], [10, 255])  # the tile at the top left
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        points.append((columns[-1] + 1, rows[-1] + 1))
        y, x = rows[-1] + 1, columns[-1] + 1
        corner = record["image"][y - 1 : y + 1, x - 1 : x + 1, 0]
        np.testing.assert_array_equal(corner, [[10, 20], [30, 40]])
    points = np.array(points)
    assert (points.min(axis=0) >= [40, 30]).all() and (points.max(axis=0) < [120, 90]).all()
    # Four standard deviations of the means over ranges of 80 and 60 px.
    assert (abs(points.mean(axis=0) - [79.5, 59.5]) < 4 * np.array([80, 60]) / 69.3).all()
    assert (points.min(axis=0) < [43, 33]).all() and (points.max(axis=0) > [116, 86]).all()


def test_a_mosaic_of_nine_goes_clockwise_around_the_first():
    """With tiles of the canvas's size, the neighbours of the first are where they belong."""
    parts = [tile(number, *CANVAS) for number in range(9)]
    order = np.array([[8, 1, 2], [7, 0, 3], [6, 5, 4]])
    seen = set()
    for seed in range(60):
        image = plane_of(mosaic.nine, parts, np.random.default_rng(seed))["image"][..., 0]
        # The first tile is always visible as a whole: its corner lies in the top left quarter.
        y, x = (int(k[0]) for k in np.nonzero(np.isin(image, [10, 255])))
        assert 0 < y <= 60 and 0 < x <= 80
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                top, left = y + 60 * row, x + 80 * column
                part = image[max(top, 0) : top + 60, max(left, 0) : left + 80]
                number = order[row + 1, column + 1]
                assert np.isin(part, [10 * (number + 1), 255 - number]).all()
                seen.add(int(number) if part.size else -1)
    assert seen >= set(range(9))


def test_pieces_by_hand():
    parts = [tile(0, 20, 30), tile(1, 20, 30), tile(2, 20, 30)]
    record = mosaic.paste(parts, [(-10, -5), (70, 50), (200, 0)], CANVAS, 0)
    # (2, 3, 26, 18) and (0, 0, 2, 20), moved 10 left and 5 up; the second is cut off.
    np.testing.assert_array_equal(record["boxes"][0], [0, 0, 16, 13])
    # (3, 3, 26, 17) and (0, 0, 2, 20), moved 70 right and 50 down, in 80 x 60 px.
    np.testing.assert_array_equal(record["boxes"][1:], [[73, 53, 80, 60], [70, 50, 72, 60]])
    np.testing.assert_array_equal(record["labels"], [0, 1, 1])
    np.testing.assert_array_equal(record["ignore"], [False, False, True])
    shares = [16 * 13 / (24 * 15), 7 * 7 / (23 * 14), 0.5]
    np.testing.assert_allclose(record["area"], np.array([100, 100, 7]) * shares, rtol=1e-6)
    assert {record[k].dtype for k in ("boxes", "area", "placement")} == {np.dtype("f4")}


def test_flags_stay_where_every_tile_has_them():
    parts = tiles(4, 0)
    for number, part in enumerate(parts):
        part["flags"] = np.full((2, 6), number, np.int32)
    record = plane_of(mosaic.four, parts, np.random.default_rng(0))
    np.testing.assert_array_equal(record["flags"][:, 0], record["labels"])
    del parts[2]["flags"]
    assert "flags" not in plane_of(mosaic.four, parts, np.random.default_rng(0))


def test_tiles_without_objects_give_a_mosaic_without():
    keep = ("boxes", "labels", "ignore", "area")
    empty = [{k: v[:0] if k in keep else v for k, v in part.items()} for part in tiles(9, 3)]
    for place, count in ((mosaic.four, 4), (mosaic.nine, 9)):
        record = plane_of(place, empty[:count], np.random.default_rng(0))
        assert record["boxes"].shape == (0, 4) and record["labels"].dtype == np.int32


@pytest.mark.parametrize(
    "ranges",
    [affine.Ranges(), affine.Ranges(scale=0.9), affine.Ranges(40, 0.3, 0.5, 10, 0.002)],
    ids=["none", "scale", "all"],
)
def test_a_plane_drawn_only_where_the_map_reads_it_shows_the_same(ranges):
    size, filled = (2 * CANVAS[0], 2 * CANVAS[1]), []
    for seed in range(30):
        rng = np.random.default_rng([9, seed])
        parts = tiles(4, seed)
        corners = mosaic.four(parts, CANVAS, rng)
        moved_by = affine.draw(ranges, size, CANVAS, rng)
        seen = affine.window(moved_by, CANVAS, size)
        shown = []
        for window, channels in ((None, 3), (seen, 3), (seen, 4)):
            plane = mosaic.paste(parts, corners, size, (1, 2, 3), window, channels)
            shown.append(affine.warp(plane, moved_by, CANVAS, affine.Rule(), 5))
        for key, value in shown[0].items():
            for other in shown[1:]:
                np.testing.assert_array_equal(value, other[key], err_msg=key)
        rows, columns = seen
        filled.append((rows.stop - rows.start) * (columns.stop - columns.start))
    if not ranges.perspective:
        assert min(filled) < 0.4 * size[0] * size[1]


def test_mixup_is_the_weighted_mean_with_the_objects_of_both():
    rng = np.random.default_rng(0)
    record, other = painted.record(60, 80), painted.record(60, 80, box=(40, 20, 70, 50))
    record["image"] = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    other["image"] = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    other["labels"][:] = 5
    record["placement"] = other["placement"] = np.array([1, 1, 0, 0], np.float32)
    before = record["image"].copy(), other["image"].copy()
    mixed = mosaic.mix(record, other, 0.3, 0)
    expected = 0.3 * record["image"] + 0.7 * other["image"].astype(float)
    assert abs(mixed["image"] - expected).max() <= 0.51  # rounded once
    np.testing.assert_array_equal(mixed["boxes"], [[10, 4, 30, 28], [40, 20, 70, 50]])
    np.testing.assert_array_equal(mixed["labels"], [0, 5])
    np.testing.assert_array_equal(mosaic.mix(record, other, 1.0, 0)["image"], record["image"])
    np.testing.assert_array_equal(record["image"], before[0])
    np.testing.assert_array_equal(other["image"], before[1])


def test_pictures_of_two_sizes_are_mixed_from_their_top_left_corner():
    small, large = painted.record(30, 90), painted.record(60, 80)
    small["image"][:] = 100
    large["image"][:] = 200
    small["placement"] = np.array([1, 1, 0, 0], np.float32)
    mixed = mosaic.mix(small, large, 0.5, (10, 20, 30))
    assert mixed["image_size"] == (60, 90) and mixed["image"].shape == (60, 90, 3)
    assert (mixed["image"][:30, :80] == 150).all()
    assert (mixed["image"][30:, :80] == [105, 110, 115]).all()
    assert (mixed["image"][:30, 80:] == [55, 60, 65]).all()
    assert (mixed["image"][30:, 80:] == [10, 20, 30]).all()

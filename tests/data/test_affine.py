"""Maps move pixels and boxes together, stay within their ranges, and keep objects by the rule."""

import numpy as np
import painted
import pytest

from detlab.data import affine

ALL = affine.Rule(0.0, 0.0, 1e9)  # keeps all that is visible
WIDE = affine.Ranges(degrees=180.0, translate=0.3, scale=0.5, shear=15.0, perspective=2e-3)
RANGES = {
    "turn": affine.Ranges(degrees=180.0),
    "scale": affine.Ranges(scale=0.5),
    "translate": affine.Ranges(translate=0.4),
    "shear": affine.Ranges(shear=20.0),
    "perspective": affine.Ranges(perspective=4e-3),
    "all": WIDE,
}


def generator(*seed):
    return np.random.default_rng(seed)


def objects(boxes, ignore=None):
    """A record of 80 x 100 px with these boxes, numbered by their labels."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return {
        "image": np.zeros((80, 100, 3), np.uint8),
        "boxes": boxes,
        "labels": np.arange(n, dtype=np.int32),
        "ignore": np.zeros(n, bool) if ignore is None else np.array(ignore),
        "area": np.full(n, 50, np.float32),
        "flags": np.arange(2 * n, dtype=np.int32).reshape(n, 2),
        "index": 3,
    }


# ------------------------------------------------------------------------------------------------
# Pixels and boxes


@pytest.mark.parametrize("target", [(80, 100), (61, 90)])
@pytest.mark.parametrize("name", RANGES)
def test_every_pixel_shows_the_place_that_the_map_says(name, target):
    record = painted.coordinates(objects([]))
    for seed in range(8):
        moved_by = affine.draw(RANGES[name], (80, 100), target, generator(seed))
        image = affine.warp(record, moved_by, target, ALL, 0)["image"].astype(float)
        y, x = np.indices(target) + 0.5
        place = np.stack([x, y, np.ones(target)], axis=-1) @ np.linalg.inv(moved_by.matrix).T
        place = place[..., :2] / place[..., 2:]
        inside = ((place > 1) & (place < [99, 79])).all(axis=-1)  # not blended with the border
        assert inside.mean() > 0.1
        error = (image[..., :2] / 2 - place)[inside]
        # Half a level of 2x is 0.25 px; OpenCV's table of weights is for steps of 1/32 px.
        assert abs(error).max() < 0.32
        # The half pixel between corners and centres would show in the mean, as 0.2 px at a scale of
        # 0.6.  A pure shift rounds all pixels alike.
        if name != "translate":
            assert abs(error.mean(axis=0)).max() < 0.03
        assert (image[..., 2][inside] == 255).all()


@pytest.mark.parametrize("name", ["scale", "translate"])
def test_a_box_that_is_not_turned_is_exactly_what_is_white(name):
    for seed in range(30):
        record = painted.record(64, 96, box=(30, 20, 70, 45))
        moved_by = affine.draw(RANGES[name], (64, 96), (64, 96), generator(seed))
        moved = affine.warp(record, moved_by, (64, 96), ALL, 0)
        assert_white_is_the_box(moved)


def assert_white_is_the_box(record, tolerance=0.05):
    """As in `painted`, within a tolerance: OpenCV's maps have a resolution of 1/32 px."""
    for axis in (0, 1):
        low, high = record["boxes"][0][axis::2]
        white = record["image"][..., 0].max(axis=axis) > 127
        centre = np.arange(len(white)) + 0.5
        inside = (centre > low) & (centre < high)
        near = np.minimum(abs(centre - low), abs(centre - high)) < tolerance
        np.testing.assert_array_equal(white | near, inside | near)


@pytest.mark.parametrize("name", ["turn", "shear", "perspective", "all"])
def test_a_box_holds_the_four_corners_that_were_painted(name):
    shown = 0
    for seed in range(40):
        record = painted.record(120, 160, box=(50, 40, 110, 80))
        moved_by = affine.draw(RANGES[name], (120, 160), (120, 160), generator(seed))
        moved = affine.warp(record, moved_by, (120, 160), ALL, 0)
        white = moved["image"][..., 0] > 127
        if not len(moved["boxes"]):
            assert white.sum() <= 1
            continue
        shown += 1
        columns, rows = np.flatnonzero(white.any(axis=0)), np.flatnonzero(white.any(axis=1))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # Sharp corners fade: the last half-white pixel lies up to 2 px inside the tip.
        assert (abs(moved["boxes"][0] - around) < 2.2).all()
        assert (moved["boxes"][0] - around)[:2].max() < 0.6  # and hardly ever beyond it
        assert (around - moved["boxes"][0])[2:].max() < 0.6
        # If the border cuts nothing off, the object's area is the painted area.
        whole = (around > np.zeros(4)).all() and (around < np.array([160, 120, 160, 120])).all()
        if whole:
            np.testing.assert_allclose(moved["area"], [white.sum()], rtol=0.03)
    assert shown > 25


def test_maps_by_hand():
    middle = affine.centred((80, 100), (40, 60))
    moved = affine.warp(objects([(30, 30, 50, 45)]), middle, (40, 60), ALL, 0)
    np.testing.assert_array_equal(moved["boxes"], [[10, 10, 30, 25]])
    np.testing.assert_array_equal(moved["area"], [50])
    np.testing.assert_array_equal(moved["flags"], [[0, 1]])
    assert moved["image_size"] == (40, 60) and moved["index"] == 3
    # A quarter turn about the centre of 80 x 80: x' = y, y' = 80 - x.
    quarter = affine.Map(np.array([[0.0, 1, 0], [-1, 0, 80], [0, 0, 1]]))
    record = painted.record(80, 80, box=(10, 20, 30, 70))
    moved = affine.warp(record, quarter, (80, 80), ALL, 0)
    np.testing.assert_array_equal(moved["boxes"], [[20, 50, 70, 70]])
    painted.assert_white_is_the_box(moved)
    double = affine.Map(np.diag([2.0, 2, 1]), 2.0)
    moved = affine.warp(objects([(30, 30, 50, 45)]), double, (80, 100), ALL, 0)
    np.testing.assert_array_equal(moved["boxes"], [[60, 60, 100, 80]])  # (60, 60, 100, 90), cut
    np.testing.assert_allclose(moved["area"], [50 * 4 * 2 / 3])
    np.testing.assert_array_equal(moved["placement"], [1, 1, 0, 0])


def test_whole_shifts_keep_every_pixel_and_the_border_has_its_colour():
    record = painted.coordinates(objects([]))
    moved = affine.warp(record, affine.centred((80, 100), (60, 140)), (60, 140), ALL, (1, 2, 3))
    np.testing.assert_array_equal(moved["image"][:, 20:120], record["image"][10:70])
    assert (moved["image"][:, :20] == [1, 2, 3]).all() and (
        moved["image"][:, 120:] == [1, 2, 3]
    ).all()
    moved = affine.warp(record, affine.centred((80, 100), (60, 140)), (60, 140), ALL, 9)
    assert (moved["image"][:, :20] == 9).all()


# ------------------------------------------------------------------------------------------------
# Random maps


def test_maps_are_drawn_uniformly_within_their_ranges():
    ranges = affine.Ranges(degrees=30.0, translate=0.2, scale=0.4)
    rng = generator(0)
    maps = [affine.draw(ranges, (80, 100), (60, 90), rng) for _ in range(2000)]
    scales = np.array([m.scale for m in maps])
    matrices = np.array([m.matrix for m in maps])
    lengths = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    np.testing.assert_allclose(lengths, scales)
    angles = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    centres = matrices[:, :2] @ [50, 40, 1] / [90, 60]  # of the image, as fractions of the result
    for values, low, high in (
        (scales, 0.6, 1.4),
        (angles, -30, 30),
        (centres[:, 0], 0.3, 0.7),
        (centres[:, 1], 0.3, 0.7),
    ):
        assert low <= values.min() + 1e-9 and values.max() <= high + 1e-9
        # Four standard deviations of a mean, and of the number in each quarter.
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 2000)
        counts = np.histogram(values, bins=4, range=(low, high))[0]
        assert abs(counts - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)
    drawn = np.stack([scales, angles, *centres.T])
    assert abs(np.corrcoef(drawn) - np.eye(4)).max() < 4 / np.sqrt(2000)  # independently


@pytest.mark.parametrize("name", ["scale", "all"])
def test_a_fourth_channel_changes_no_pixel(name, monkeypatch):
    record = painted.record(120, 160, box=(50, 40, 110, 80))
    record["image"] = generator(0).integers(0, 256, (120, 160, 3), np.uint8)
    for seed in range(20):
        moved_by, drawn = affine.draw(RANGES[name], (120, 160), (90, 90), generator(seed)), []
        for channels in (3, 4):
            monkeypatch.setattr(affine, "CHANNELS", channels)
            drawn.append(affine.warp(record, moved_by, (90, 90), ALL, (1, 2, 3))["image"])
        np.testing.assert_array_equal(*drawn)


def test_shear_and_perspective_by_their_formulas():
    for seed in range(20):
        u = generator(seed).uniform(-1, 1, 8)
        shear = affine.draw(affine.Ranges(shear=20.0), (80, 100), (80, 100), generator(seed)).matrix
        tan = np.tan(np.radians(20 * u[2:4]))
        np.testing.assert_allclose(shear[:2, :2], [[1, tan[0]], [tan[1], 1]])
        np.testing.assert_allclose(shear @ [50, 40, 1], [50, 40, 1], rtol=1e-12)
        ranges = affine.Ranges(perspective=1e-3)
        matrix = affine.draw(ranges, (80, 100), (80, 100), generator(seed)).matrix
        tilt = 1e-3 * u[6:]
        for x, y in ((0, 0), (100, 0), (73, 21)):
            distance = 1 + tilt @ [x - 50, y - 40]
            expected = [50 + (x - 50) / distance, 40 + (y - 40) / distance]
            found = matrix @ [x, y, 1]
            np.testing.assert_allclose(found[:2] / found[2], expected)


def test_no_perspective_turns_the_picture_over():
    for seed in range(50):
        matrix = affine.draw(affine.Ranges(perspective=1.0), (80, 100), (80, 100), generator(seed))
        corners = np.array([(0, 0, 1), (100, 0, 1), (0, 80, 1), (100, 80, 1)])
        distances = corners @ matrix.matrix[2]
        assert distances.min() >= 0.5 - 1e-9 and distances.max() <= 1.5 + 1e-9


def test_ranges_of_nothing_leave_the_record_as_it_is():
    record = painted.coordinates(objects([(10, 20, 30, 40)]))
    moved_by = affine.draw(affine.Ranges(), (80, 100), (80, 100), generator(0))
    np.testing.assert_array_equal(moved_by.matrix, np.eye(3))
    moved = affine.warp(record, moved_by, (80, 100), affine.Rule(), 0)
    np.testing.assert_array_equal(moved["image"], record["image"])
    np.testing.assert_array_equal(moved["boxes"], record["boxes"])


# ------------------------------------------------------------------------------------------------
# Which objects are kept


def reference_stays(before, after, scale, min_side, min_part, max_ratio):
    """The original's rule for one object, in Python floats."""
    w1, h1 = scale * (before[2] - before[0]), scale * (before[3] - before[1])
    w2, h2 = after[2] - after[0], after[3] - after[1]
    if w2 <= min_side or h2 <= min_side:
        return False
    return w2 * h2 / (w1 * h1) > min_part and max(w2 / h2, h2 / w2) < max_ratio


@pytest.mark.parametrize("rule", [affine.Rule(), affine.Rule(2.0, 0.2, 20.0)], ids=["v7", "v3"])
def test_the_rule_is_the_originals(rule):
    rng = generator(1)
    low = rng.uniform(0, 60, (500, 2))
    before = np.concatenate([low, low + rng.uniform(1, 60, (500, 2))], axis=1)
    before[:50, 2] = before[:50, 0] + rng.uniform(0.02, 3, 50)  # some are slender
    after = np.clip(before * 0.7 - rng.uniform(0, 40, (500, 1)), 0, 50)
    expected = [reference_stays(b, a, 0.7, *rule) for b, a in zip(before, after)]
    found = affine.stays(rule, before, after, 0.7)
    np.testing.assert_array_equal(found, expected)
    assert 100 < found.sum() < 400


def test_each_part_of_the_rule_by_hand():
    before = np.array([[0, 0, 10, 10]] * 3 + [[0, 0, 10, 1000], [0, 0, 10, 999], [5, 5, 5, 5.0]])
    after = np.array(
        [
            [0, 0, 2, 10],  # 2 px: too small
            [0, 0, 2.1, 4.7],  # 9.87 of 100
            [0, 0, 2.1, 4.8],  # 10.08 of 100
            [0, 0, 10, 1000],  # 100 times as long
            [0, 0, 10, 999],
            [0, 0, 5, 5],  # had no area
        ]
    )
    found = affine.stays(affine.Rule(), before, after)
    np.testing.assert_array_equal(found, [0, 0, 1, 0, 1, 0])
    # At twice the size, 40.32 of 400 px^2 are left, just over a tenth.
    doubled = affine.stays(affine.Rule(), before[2:3], np.array([[0, 0, 4.2, 9.6]]), 2.0)
    assert doubled.all()


def test_objects_to_ignore_go_along_by_the_same_rule():
    record = objects([(0, 0, 20, 20), (30, 30, 60, 60), (0, 0, 21, 21)], [False, True, True])
    far = affine.Map(np.array([[1.0, 0, -19], [0, 1, -19], [0, 0, 1]]))
    moved = affine.warp(record, far, (80, 100), affine.Rule(), 0)
    np.testing.assert_array_equal(moved["labels"], [1])
    np.testing.assert_array_equal(moved["ignore"], [True])
    np.testing.assert_array_equal(moved["boxes"], [[11, 11, 41, 41]])
    np.testing.assert_array_equal(moved["flags"], [[2, 3]])


def test_pictures_without_objects_pass_and_no_record_is_changed():
    record = painted.coordinates(objects([(10, 20, 30, 40), (50, 20, 90, 70)]))
    before = {name: np.copy(value) for name, value in record.items()}
    for seed in range(5):
        moved_by = affine.draw(WIDE, (80, 100), (80, 100), generator(seed))
        empty = affine.warp(objects([]), moved_by, (80, 100), affine.Rule(), 0)
        assert empty["boxes"].shape == (0, 4) and empty["flags"].shape == (0, 2)
        moved = affine.warp(record, moved_by, (80, 100), affine.Rule(), 0)
        assert {moved[name].dtype for name in ("boxes", "area", "placement")} == {np.dtype("f4")}
        assert moved["image"].dtype == np.uint8
    for name, value in before.items():
        np.testing.assert_array_equal(record[name], value)

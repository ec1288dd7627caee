"""Assignment of objects to the cells of their middles."""

import numpy as np
import pytest
import tiny

from detlab.assign import locations
from detlab.ops import anchors as anchors_lib

SEED = 0
CANVAS, STRIDES = (192, 224), (8, 16, 32, 64)
SLOTS = 8  # as many as the unit case has


def assign(gts, valid, cell_valid=None, **ratios):
    grid = anchors_lib.grid(CANVAS, STRIDES)
    settings = {"base_scale": 4.0, "center_ratio": 0.2, "ignore_ratio": 0.5, **ratios}
    return locations.assign(grid, gts, valid, **settings, cell_valid=cell_valid)


program = tiny.jit(assign)


def padded(boxes, slots=SLOTS):
    rows = np.zeros((slots, 4), np.float32)
    rows[: len(boxes)] = boxes
    return rows, np.arange(slots) < len(boxes)


def random_boxes(count, seed):
    """Of all sizes, also beyond the canvas."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(-20, (244, 212), (count, 2))
    half = np.exp(rng.uniform(np.log(4), np.log(160), (count, 2))) / 2
    return np.concatenate([center - half, center + half], axis=-1).astype(np.float32)


def slow_assign(gts, base_scale=4.0, center_ratio=0.2, ignore_ratio=0.5):
    """[Hl, Wl] of each level: the rule, one object and one cell at a time."""
    shapes = [(-(-CANVAS[0] // s), -(-CANVAS[1] // s)) for s in STRIDES]
    maps = [np.zeros(shape, int) for shape in shapes]
    beside = [np.zeros(shape, bool) for shape in shapes]

    def region(gt, level, ratio):
        mask = np.zeros(shapes[level], bool)
        x1, y1, x2, y2 = gt / np.float32(STRIDES[level])
        margin = np.float32((1 - ratio) / 2)
        first = [np.round((1 - margin) * a + margin * b) for a, b in ((x1, x2), (y1, y2))]
        last = [np.round(margin * a + (1 - margin) * b) for a, b in ((x1, x2), (y1, y2))]
        (left, top), (right, bottom) = (np.maximum(x, 0).astype(int) for x in (first, last))
        mask[top : bottom + 1, left : right + 1] = True
        return mask

    for gt in gts:
        side = np.sqrt((gt[2] - gt[0]) * (gt[3] - gt[1]))
        level = int(np.clip(np.floor(np.log2(side / (base_scale * STRIDES[0])) + 0.5), 0, 3))
        maps[level][region(gt, level, ignore_ratio)] = -1
        maps[level][region(gt, level, center_ratio)] = 1
        for other in (level - 1, level + 1):
            if 0 <= other < len(STRIDES):
                beside[other] |= region(gt, other, ignore_ratio)
    for level, near in zip(maps, beside):
        level[(level == 0) & near] = -1
    return np.concatenate([level.ravel() for level in maps])


def test_the_reference_has_the_same_targets_and_weights(unit_cases):
    case, arrays = unit_cases("targets")["ga_loc"]
    for image in range(3):
        found = program(*padded(arrays[f"gt_boxes_{image}"]))
        levels = [
            np.concatenate([arrays[f"{name}_{i}"][image].ravel() for i in range(4)])
            for name in ("targets", "weights")
        ]
        targets, weights = levels
        status = np.asarray(found.status)
        np.testing.assert_allclose(
            np.where(status == 0, 0.1, status == 1), weights, **case["tolerance"]
        )
        np.testing.assert_array_equal(status[weights > 0] == 1, targets[weights > 0] == 1)
    cells = 3 * sum(arrays[f"targets_{i}"][0].size for i in range(4))
    assert cells / 200 == pytest.approx(case["args"]["avg_factor"])


@pytest.mark.parametrize("seed", range(5))
def test_random_objects_equal_plain_loops(seed):
    gts = random_boxes(6, SEED + seed)
    found = program(*padded(gts))
    np.testing.assert_array_equal(found.status, slow_assign(gts))
    assert set(np.unique(found.status)) == {-1, 0, 1}


def test_rule_by_hand():
    """A square of 36 px is on level 0, whose squares have 32 px; its middle is one cell."""
    found = program(*padded([[78.0, 78.0, 114.0, 114.0]]))
    grid = anchors_lib.grid(CANVAS, STRIDES)
    finest, second, third, _ = (np.asarray(found.status)[level] for level in grid.slices())
    finest, second = finest.reshape(24, 28), second.reshape(12, 14)
    assert (finest == 1).sum() == 1 and finest[12, 12] == 1  # its point is (96, 96)
    assert (finest == -1).sum() == 8 and (finest[11:14, 11:14] != 0).all()
    assert (second == -1).sum() == 9 and not (second == 1).any() and second[6, 6] == -1
    assert not third.any()


def test_a_later_object_decides_about_shared_cells_and_each_positive_knows_its_object():
    first, second = [64.0, 64.0, 108.0, 108.0], [80.0, 80.0, 124.0, 124.0]
    shared = [11 * 28 + 11, 12 * 28 + 12]  # in the middle of the first, and of the second
    for boxes, status, matched in (
        ([first, second], [-1, 1], [0, 1]),
        ([second, first], [1, -1], [1, 0]),
        ([first], [1, -1], [0, 0]),
    ):
        found = program(*padded(boxes))
        np.testing.assert_array_equal(found.status[np.array(shared)], status)
        np.testing.assert_array_equal(found.matched[np.array(shared)], matched)
        assert not found.matched[found.status != 1].any()


def test_padding_of_slots_and_of_the_image_changes_nothing_else():
    gts = random_boxes(4, SEED)
    few, many = program(*padded(gts, 4)), program(*padded(gts, 9))
    for a, b in zip(few, many):
        np.testing.assert_array_equal(a, b)
    cell_valid = np.arange(len(few.status)) % 3 > 0
    part = program(*padded(gts, 4), cell_valid)
    np.testing.assert_array_equal(part.status, np.where(cell_valid, few.status, -1))
    empty = program(*padded(gts[:0]))
    assert not empty.status.any() and not empty.matched.any()

"""Adaptive training sample selection."""

import functools

import jax
import numpy as np
import pytest
import tiny

from detlab.assign import atss
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib

SEED = 0
SLOTS = 12  # as many as any case has, so that the cases share a program
STRIDES = (8, 16, 32)


@functools.cache
def program(slices, k=9):
    """The assignment with `slices` as pairs (start, stop), which can be hashed."""
    levels = [slice(*pair) for pair in slices]

    def assign(anchors, boxes, valid, anchor_valid):
        return atss.assign(anchors, levels, boxes, valid, k, anchor_valid=anchor_valid)

    return tiny.jit(assign)


def pyramid(extent=96):
    """Square anchors [N, 4] of side 8 strides, and the (start, stop) of each level."""
    grid = anchors_lib.grid((extent, extent), STRIDES)
    cells = [anchors_lib.cell_anchors(s, (8,), (1,)) for s in STRIDES]
    slices = tuple((int(level.start), int(level.stop)) for level in grid.slices())
    return np.asarray(grid.anchors(cells)), slices


def random_boxes(count, seed=SEED, extent=96.0):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(-5, extent - 10, (count, 2)), rng.uniform(8, 90, (count, 2))
    return np.concatenate([low, low + size], axis=-1).astype(np.float32)


def slow_assign(anchors, slices, boxes, k, anchor_valid):
    """Algorithm 1 of the paper as it is written: (status, matched)."""
    overlaps = np.float64(boxes_lib.pairwise_iou(anchors, boxes))
    centers = np.float64(anchors[:, :2] + anchors[:, 2:]) / 2
    status, matched = np.where(anchor_valid, 0, -1), np.zeros(len(anchors), int)
    best = np.full(len(anchors), -1.0)
    for slot, (x1, y1, x2, y2) in enumerate(np.float64(boxes)):
        candidates = []
        for start, stop in slices:
            level = np.arange(start, stop)[anchor_valid[start:stop]]
            distance = np.hypot(*(centers[level] - [(x1 + x2) / 2, (y1 + y2) / 2]).T)
            last_first = np.lexsort([-level, distance])
            candidates += list(level[last_first[:k]])
        iou = overlaps[candidates, slot]
        for n in np.array(candidates)[iou >= iou.mean() + iou.std(ddof=1)]:
            x, y = centers[n]
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if inside and overlaps[n, slot] > best[n]:
                best[n], status[n], matched[n] = overlaps[n, slot], 1, slot
    return status, matched


@pytest.mark.parametrize("name", ["atss_9", "atss_4", "atss_none", "atss_ignore"])
def test_assignment_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("assign")[name]
    ends = np.cumsum([0, *case["args"]["num_level_priors"]]).tolist()
    assign = program(tuple(zip(ends, ends[1:], strict=False)), case["args"]["topk"])
    anchors, objects = arrays["priors"], arrays["gt_boxes"]
    boxes = np.zeros((SLOTS, 4), np.float32)
    boxes[: len(objects)] = objects
    anchor_valid = np.ones(len(anchors), bool)
    if "ignore" in arrays:  # areas: their anchors take no part
        covered = boxes_lib.pairwise(boxes_lib.iof, anchors, arrays["ignore"]).max(1)
        anchor_valid = np.asarray(covered <= case["args"]["ignore_iof_thr"])
        assert not anchor_valid.all()

    found = assign(anchors, boxes, np.arange(SLOTS) < len(objects), anchor_valid)
    gt_inds = np.where(found.status == 1, found.matched + 1, found.status)
    np.testing.assert_array_equal(gt_inds, arrays["gt_inds"])
    labels = np.append(arrays["gt_labels"], -1)[np.where(gt_inds > 0, gt_inds - 1, -1)]
    np.testing.assert_array_equal(labels, arrays["labels"])
    positive = gt_inds > 0
    iou = boxes_lib.iou(anchors[positive], boxes[gt_inds[positive] - 1])
    np.testing.assert_allclose(iou, arrays["max_overlaps"][positive], **case["tolerance"])


def test_random_images_equal_algorithm_1():
    anchors, slices = pyramid()
    shared = 0
    for seed in range(8):
        boxes = random_boxes(9, seed)
        rows = np.random.default_rng(seed).uniform(40, 96)
        anchor_valid = anchors[:, 1] + anchors[:, 3] < 2 * rows
        found = program(slices)(anchors, boxes, np.ones(9, bool), anchor_valid)
        status, matched = slow_assign(anchors, slices, boxes, 9, anchor_valid)
        np.testing.assert_array_equal(found.status, status, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(found.matched, matched, err_msg=f"seed {seed}")
        each = [slow_assign(anchors, slices, box[None], 9, anchor_valid)[0] for box in boxes]
        shared += sum((s == 1).sum() for s in each) - (status == 1).sum()
    assert shared > 0, "objects compete for anchors"


def test_assignment_by_hand():
    """One level, three candidates of IoU 1, 1/3 and 1/3: the threshold is 5/9 + 0.385 = 0.94."""
    anchors = np.float32([[0, 0, 8, 8], [4, 0, 12, 8], [-4, 0, 4, 8], [40, 0, 48, 8]])
    box, valid = np.float32([[0, 0, 8, 8]]), np.ones(1, bool)
    found = program(((0, 4),), 3)(anchors, box, valid, np.ones(4, bool))
    assert found.status.tolist() == [1, 0, 0, 0]
    # Two candidates of IoU 1/3 each: both reach the mean, but both centres lie on a side.
    found = program(((0, 4),), 2)(anchors, box, valid, np.array([False, True, True, True]))
    assert found.status.tolist() == [-1, 0, 0, 0]
    assert found.status.dtype == found.matched.dtype == np.int32


def test_of_equally_near_anchors_the_last_is_a_candidate():
    """Both have the same distance and the same IoU; k is 1."""
    anchors = np.float32([[-2, 0, 6, 8], [2, 0, 10, 8]])
    box, both = np.float32([[0, 0, 8, 8]]), np.ones(2, bool)
    found = program(((0, 2),), 1)(anchors, box, both[:1], both)
    assert found.status.tolist() == [0, 1]


def test_an_anchor_of_two_objects_is_matched_to_the_larger_overlap():
    anchors = np.float32([[0, 0, 8, 8], [40, 40, 48, 48]])
    boxes = np.float32([[0, 0, 8, 7], [0, 0, 8, 8], [0, 0, 8, 8]])
    found = program(((0, 2),), 1)(anchors, boxes, np.ones(3, bool), np.ones(2, bool))
    assert found.status.tolist() == [1, 0] and found.matched.tolist() == [1, 0]


def test_a_level_gives_no_more_candidates_than_it_has_cells():
    anchors, slices = pyramid(extent=32)  # 16, 4 and 1 cells
    boxes, everywhere = random_boxes(3, extent=32.0), np.ones(len(anchors), bool)
    found = program(slices, 100)(anchors, boxes, np.ones(3, bool), everywhere)
    status, matched = slow_assign(anchors, slices, boxes, 100, everywhere)
    np.testing.assert_array_equal(found.status, status)
    np.testing.assert_array_equal(found.matched, matched)
    alone = program(((0, 1),))(anchors[:1], anchors[:1], np.ones(1, bool), np.ones(1, bool))
    assert alone.status.tolist() == [1], "a single candidate is its own threshold"


def test_padded_slots_and_padded_cells_change_nothing():
    anchors, slices = pyramid()
    boxes, everywhere = random_boxes(6), np.ones(len(anchors), bool)
    plain = program(slices)(anchors, boxes, np.ones(6, bool), everywhere)
    for filler in (np.zeros((11, 4)), [[0, 0, 40, 40]] * 11):
        padded = np.concatenate([boxes, np.float32(filler)])
        found = program(slices)(anchors, padded, np.arange(17) < 6, everywhere)
        for a, b in zip(found, plain):
            np.testing.assert_array_equal(a, b)
    # A larger canvas, whose further cells are padding.
    more, more_slices = pyramid(extent=128)
    content = np.isin(more.view("f4,f4,f4,f4"), anchors.view("f4,f4,f4,f4")).ravel()
    found = program(more_slices)(more, boxes, np.ones(6, bool), content)
    assert content.sum() == len(anchors) and (np.asarray(found.status)[~content] == -1).all()
    for a, b in zip(found, plain):
        np.testing.assert_array_equal(np.asarray(a)[content], b)


@pytest.mark.parametrize("slots", [0, 3])
def test_without_objects_all_anchors_are_negative(slots):
    anchors, slices = pyramid()
    everywhere = np.ones(len(anchors), bool)
    boxes = np.zeros((slots, 4), np.float32)
    found = program(slices)(anchors, boxes, np.zeros(slots, bool), everywhere)
    assert not found.status.any() and not found.matched.any()


def test_an_object_without_area_takes_no_anchor():
    anchors, slices = pyramid()
    boxes = np.float32([[44, 44, 44, 44], [500, 500, 520, 520]])
    found = program(slices)(anchors, boxes, np.ones(2, bool), np.ones(len(anchors), bool))
    assert not found.status.any()


def test_memory_at_published_size_is_far_below_a_matrix_of_anchors_and_objects():
    """800 x 1344 px, 100 objects; a single [N, G] float32 matrix takes 9 MB."""
    grid = anchors_lib.grid((800, 1344), (8, 16, 32, 64, 128))
    cells = [anchors_lib.cell_anchors(s, (8,), (1,)) for s in grid.strides]

    def assign(boxes, valid, image_size):
        anchors, inside = grid.anchors(cells), grid.inside(image_size)
        return atss.assign(anchors, grid.slices(), boxes, valid, anchor_valid=inside)

    arguments = (
        jax.ShapeDtypeStruct((100, 4), np.float32),
        jax.ShapeDtypeStruct((100,), bool),
        jax.ShapeDtypeStruct((2,), np.int32),
    )
    compiled = tiny.jit(assign).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 5e6

"""Darknet's assignment: which anchors, which cells, and the final content of each row."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from darknet_deltas import measure

from detlab.assign import darknet
from detlab.ops import boxes as boxes_lib

SIZES = ((8, 10), (12, 30), (30, 14), (40, 44))  # width, height px
CANVAS, SHAPE = (64, 96), (4, 6)  # cells of 16 px
SEED = 5


@functools.cache
def program(**rules):
    return tiny.jit(functools.partial(darknet.assign, SIZES, shape=SHAPE, canvas=CANVAS, **rules))


@functools.cache
def meet(num_rows):
    def compute(entries, labels, predicted=None):
        predicted = np.full(num_rows, -1) if predicted is None else predicted
        return darknet.meet(entries, labels, num_rows, 3, predicted)

    return tiny.jit(compute)


def boxes_around(centers, extents):
    centers, extents = np.float32(centers), np.float32(extents)
    return np.concatenate([centers - extents / 2, centers + extents / 2], axis=-1)


def random_objects(count, slots):
    rng = np.random.default_rng(SEED)
    boxes = boxes_around(rng.uniform(2, [94, 62], (slots, 2)), rng.uniform(3, 60, (slots, 2)))
    valid = np.arange(slots) < count
    return boxes * valid[:, None], valid


def test_the_nearest_anchor_of_all_heads_learns_an_object_in_the_cell_of_its_centre():
    gts = boxes_around([[40, 20], [95, 63]], [[13, 28], [42, 44]])  # near anchors 1 and 3
    row, positive = program(mask=(0, 1))(gt_boxes=gts, gt_valid=np.ones(2, bool))
    np.testing.assert_array_equal(positive, [[False, False], [True, False]])
    assert row[1, 0] == (1 * 6 + 2) * 2 + 1  # row 1, column 2, second of two anchors
    row, positive = program(mask=(2, 3))(gt_boxes=gts, gt_valid=np.ones(2, bool))
    np.testing.assert_array_equal(positive, [[False, False], [False, True]])
    assert row[1, 1] == (3 * 6 + 5) * 2 + 1


def test_a_threshold_adds_other_anchors_of_the_mask():
    gt = boxes_around([[40, 20]], [[12, 30]])  # anchor 1 itself; IoU 80 / 360 with anchor 0
    for threshold, others in ((0.22, True), (0.23, False)):
        found = program(mask=(0, 1), iou_thresh=threshold)(gt_boxes=gt, gt_valid=np.ones(1, bool))
        np.testing.assert_array_equal(found.positive[:, 0], [others, True])


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_entries_equal_a_loop_over_objects_and_anchors(kind):
    mask, threshold = (0, 2, 3), 0.3
    gts, valid = random_objects(12, 15)
    compute = program(mask=mask, iou_thresh=threshold, iou_kind=kind)
    row, positive = compute(gt_boxes=gts, gt_valid=valid)
    unit = np.array([96, 64])
    anchors = [(0, 0, *(np.array(size) / unit)) for size in SIZES]
    for slot in range(12):
        x, y = (gts[slot, :2] + gts[slot, 2:]) / 2
        shape = (0, 0, *((gts[slot, 2:] - gts[slot, :2]) / unit))
        best = np.argmax([measure(anchor, shape) for anchor in anchors])
        for a, number in enumerate(mask):
            expected = number == best or measure(anchors[number], shape, kind) > threshold
            assert positive[a, slot] == expected, (slot, number)
            assert row[a, slot] == (int(y // 16) * 6 + int(x // 16)) * 3 + a
    counts = positive.sum(0)
    assert (counts > 1).any() and (counts[:12] == 0).any(), "several anchors or none"
    assert not positive[:, 12:].any()


def test_only_objects_that_darknet_would_read_are_learnable():
    gts = boxes_around(
        [[40, 20], [40, 20], [40, 20], [97, 20], [40, -1], [0, 0]],
        [[1, 1], [0.9, 9], [9, 0.9], [9, 9], [9, 9], [0, 0]],
    )
    given = np.array([True] * 5 + [False])
    found = tiny.jit(lambda *args: darknet.learnable(*args, CANVAS))(gts, given)
    np.testing.assert_array_equal(found, [True] + [False] * 5)


def test_aspect_counts_in_the_ciou_of_shapes_and_an_unknown_kind_raises():
    a, b = jnp.array([2.0, 1.0]), jnp.array([1.0, 2.0])
    v = 4 / np.pi**2 * (np.arctan(2) - np.arctan(0.5)) ** 2
    expected = {"iou": 1 / 3, "diou": 1 / 3, "giou": 1 / 3 - 1 / 4}
    expected["ciou"] = 1 / 3 - v * v / (2 / 3 + v)
    for kind, value in expected.items():
        assert darknet.shape_overlap(a, b, kind) == pytest.approx(value, rel=1e-5)
    with pytest.raises(ValueError, match="'mse'"):
        darknet.shape_overlap(a, b, "mse")


def test_the_best_overlap_is_that_of_the_whole_matrix_and_broken_boxes_have_none():
    gts, valid = random_objects(6, 9)
    boxes, _ = random_objects(40, 40)
    boxes[3], boxes[7] = np.nan, [0, 0, np.inf, np.inf]
    iou, slot = tiny.jit(darknet.best_overlap)(boxes, gts, valid)
    matrix = np.asarray(boxes_lib.pairwise_iou(boxes, gts))
    matrix = np.where(np.isfinite(matrix) & valid, matrix, 0.0)
    np.testing.assert_allclose(iou, matrix.max(1), rtol=1e-6)
    some = matrix.max(1) > 0
    np.testing.assert_array_equal(slot[some], matrix.argmax(1)[some])
    assert iou[3] == iou[7] == 0 and not some.all() and some.any()


def test_objects_that_meet_in_a_row_are_kept_in_their_order():
    # Slots 0, 1 and 3 are assigned to row 4, slot 2 to row 1, where slot 4 has a negative entry.
    row = jnp.array([[4, 4, 1, 4, 0], [5, 5, 2, 5, 1]])
    positive = jnp.array([[True, True, True, True, False], [False] * 5])
    labels = jnp.array([2, 0, 1, 2, 1])
    rows = meet(6)(darknet.Entries(row, positive), labels)
    np.testing.assert_array_equal(rows.first, [-1, 2, -1, -1, 0, -1])
    np.testing.assert_array_equal(rows.last, [-1, 2, -1, -1, 3, -1])
    np.testing.assert_array_equal(rows.later[4], [True, False, True])
    assert rows.later.sum() == 2

    predicted = jnp.array([-1, -1, 4, -1, 1, -1])  # row 2 predicts slot 4, row 4 slot 1
    rows = meet(6)(darknet.Entries(row, positive), labels, predicted)
    np.testing.assert_array_equal(rows.first, [-1, 2, 4, -1, 1, -1])
    np.testing.assert_array_equal(rows.last, [-1, 2, -1, -1, 3, -1])
    np.testing.assert_array_equal(rows.later[4], [True, False, True])
    assert rows.later.sum() == 2


def test_empty_slots_change_nothing():
    gts, valid = random_objects(5, 5)
    labels = np.array([0, 1, 2, 1, 0])
    compute = program(mask=(1, 2), iou_thresh=0.2)
    entries = compute(gt_boxes=gts, gt_valid=valid)
    rows = meet(48)(entries, labels)
    padded = np.pad(gts, ((0, 3), (0, 0))), np.pad(valid, (0, 3))
    more = compute(gt_boxes=padded[0], gt_valid=padded[1])
    for a, b in zip(rows, meet(48)(more, np.pad(labels, (0, 3)))):
        np.testing.assert_array_equal(a, b)
    none = compute(gt_boxes=padded[0] * 0, gt_valid=padded[1] & False)
    assert not none.positive.any()
    nothing = meet(48)(none, np.pad(labels, (0, 3)))
    assert (nothing.first == -1).all() and (nothing.last == -1).all() and not nothing.later.any()


def test_objectness_of_objects_background_and_what_is_between():
    iou = jnp.array([0.9, 0.6, 0.6, 0.4, 0.6, 0.9])
    confident = jnp.array([True, True, False, True, True, False])
    positive = jnp.array([False, False, False, False, True, True])

    @tiny.jit
    def both(truth_thresh):
        arguments = (iou, confident, positive, 0.5, truth_thresh)
        return darknet.objectness(*arguments), darknet.objectness(*arguments, smooth=True)

    (target, counts), (smooth_target, smooth_counts) = both(1.0)
    np.testing.assert_array_equal(target, [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(counts, [0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(smooth_target, [0.9, 0.6, 0, 0, 0.6, 0], rtol=1e-6)
    np.testing.assert_array_equal(smooth_counts, np.ones(6))
    # A good enough prediction counts without a confident class too.
    (target, counts), (smooth_target, _) = both(0.8)
    np.testing.assert_array_equal(target, [1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(counts, [1, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(smooth_target, [0.81, 0.6, 0, 0, 0.6, 0.81], rtol=1e-6)

"""Assignment by grid cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import yolov3
from detlab.ops import boxes as boxes_lib

SEED = 0
SLOTS = 11  # more than any case has


@functools.cache
def program(**rules):
    assign = functools.partial(yolov3.assign, **rules)
    return tiny.jit(lambda *args: (assign(*args), yolov3.responsible(*args)))


def anchor_strides(args, anchors):
    """The stride of each anchor of a case; every cell has the same number of anchors."""
    cells = [height * width for height, width in args["featmap_sizes"]]
    return np.repeat(np.float32(args["strides"]), [n * anchors // sum(cells) for n in cells])


def slow_assign(anchors, responsible, gts, pos_iou, neg_iou, min_pos_iou):
    """The rule on the whole matrix, one object at a time; all ties."""
    overlaps = np.asarray(boxes_lib.pairwise_iou(anchors, gts))  # [N, G]
    status = np.where(overlaps.max(axis=1) <= neg_iou, 0, -1)
    own = np.where(responsible[:, None], overlaps, -1.0)
    matched = own.argmax(axis=1)
    status[own.max(axis=1) > pos_iou] = 1
    for slot in range(len(gts)):
        largest = own[:, slot].max()
        if largest > min_pos_iou:
            claimed = own[:, slot] == largest
            status[claimed], matched[claimed] = 1, slot
    return status, matched


@pytest.mark.parametrize("name", ["yolo", "first", "none"])
def test_assignment_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("assign")[f"grid_{name}"]
    args, gts = case["args"], arrays["gt_boxes"]
    boxes = np.zeros((SLOTS, 4), np.float32)
    boxes[: len(gts)] = gts
    compute = program(
        pos_iou=args["pos_iou_thr"],
        neg_iou=args["neg_iou_thr"],
        min_pos_iou=args["min_pos_iou"],
        all_ties=args.get("gt_max_assign_all", True),
    )
    strides = anchor_strides(args, len(arrays["priors"]))
    result, responsible = compute(arrays["priors"], strides, boxes, np.arange(SLOTS) < len(gts))
    np.testing.assert_array_equal(responsible, arrays["responsible_flags"])
    gt_inds = np.where(result.status == 1, result.matched + 1, result.status)
    np.testing.assert_array_equal(gt_inds, arrays["gt_inds"])
    labels = np.append(arrays["gt_labels"], -1)[np.where(gt_inds > 0, gt_inds - 1, -1)]
    np.testing.assert_array_equal(labels, arrays["labels"])


def grid(stride=16, cells=8, sizes=((12, 20), (24, 24), (48, 30))):
    """Anchors of one level, [cells * cells * A, 4], and the stride of each."""
    middle = (np.arange(cells) + 0.5) * stride
    centers = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 1, 2)
    half = np.float32(sizes) / 2
    boxes = np.concatenate([centers - half, centers + half], axis=-1).reshape(-1, 4)
    return boxes.astype(np.float32), np.full(len(boxes), stride, np.float32)


def test_random_images_equal_the_matrix_rule():
    """20 images in one vmap, with 1 to 9 objects."""
    anchors, strides = grid()
    rng = np.random.default_rng(SEED)
    corner = rng.uniform(0, 90, (20, 9, 2))
    gts = np.concatenate([corner, corner + rng.uniform(8, 38, corner.shape)], -1)
    gts = gts.astype(np.float32)
    counts = np.arange(20) % 9 + 1
    assign = functools.partial(yolov3.assign, pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.1)
    batched = tiny.jit(jax.vmap(assign, (None, None, 0, 0)))(
        anchors, strides, gts, np.arange(9) < counts[:, None]
    )
    cells = np.floor((anchors[:, :2] + anchors[:, 2:]) / 2 / 16)
    for i, count in enumerate(counts):
        real = gts[i, :count]
        gt_cells = np.floor((real[:, :2] + real[:, 2:]) / 2 / 16)
        responsible = (cells[:, None] == gt_cells).all(-1).any(1)
        status, matched = slow_assign(anchors, responsible, real, 0.5, 0.4, 0.1)
        np.testing.assert_array_equal(batched.status[i], status, err_msg=f"image {i}")
        positive = status == 1
        np.testing.assert_array_equal(batched.matched[i][positive], matched[positive])
    assert {-1, 0, 1} == set(np.unique(batched.status))


def test_rule_by_hand():
    anchors, strides = grid(cells=2, sizes=((16, 16), (32, 32)))
    gt = jnp.array([[2.0, 0.0, 18.0, 16.0]])  # its centre, (10, 8), is in the cell (0, 0)
    valid = jnp.array([True])
    responsible = yolov3.responsible(anchors, strides, gt, valid)
    np.testing.assert_array_equal(responsible, [1, 1, 0, 0, 0, 0, 0, 0])
    result = yolov3.assign(anchors, strides, gt, valid, 0.5, 0.12)
    # IoU 0.78 and 0.25 with the anchors of this cell, 0.07 and 0.14 with those of the next, 0 and
    # 0.11 with those below: anchors above 0.12 that are not positive are ignored.
    np.testing.assert_array_equal(result.status, [1, -1, 0, -1, 0, 0, 0, 0])
    assert result.status.dtype == result.matched.dtype == jnp.int32


def test_an_anchor_of_one_objects_cell_may_learn_another_object():
    """As in the reference, being responsible depends on the cell, not on the object."""
    anchors, strides = grid(cells=2, sizes=((30, 30),))
    gts = jnp.array([[6.0, 6.0, 11.0, 11.0], [2.0, 2.0, 32.0, 32.0]])  # centres (8, 8), (17, 17)
    both = yolov3.assign(anchors, strides, gts, jnp.array([True, True]), 0.5, 0.5)
    assert both.status[0] == 1 and both.matched[0] == 0  # the first object claims its best
    alone = yolov3.assign(anchors, strides, gts[1:], jnp.array([True]), 0.2, 0.1)
    np.testing.assert_array_equal(alone.status, [-1, -1, -1, 1])


def test_equal_anchors_are_all_claimed_or_only_the_first():
    anchors, strides = grid(cells=1, sizes=((20, 10), (10, 20)))
    gt, valid = jnp.array([[0.0, 0.0, 16.0, 16.0]]), jnp.array([True])
    both = yolov3.assign(anchors, strides, gt, valid, 0.9, 0.1)
    np.testing.assert_array_equal(both.status, [1, 1])
    first = yolov3.assign(anchors, strides, gt, valid, 0.9, 0.1, all_ties=False)
    np.testing.assert_array_equal(first.status, [1, -1])


def test_anchors_outside_the_content_are_ignored_and_slots_without_objects_change_nothing():
    anchors, strides = grid()
    inside = anchors[:, 0] + anchors[:, 2] < 2 * 64
    gts = jnp.array([[10.0, 10.0, 40.0, 40.0], [0.0, 0.0, 0.0, 0.0], [70.0, 20.0, 90.0, 50.0]])
    rule = functools.partial(yolov3.assign, pos_iou=0.5, neg_iou=0.4, anchor_valid=inside)
    padded = rule(anchors, strides, gts, jnp.array([True, False, False]))
    alone = rule(anchors, strides, gts[:1], jnp.array([True]))
    for a, b in zip(padded, alone):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(padded.status)[~inside] == -1).all() and (padded.status == 1).any()
    none = rule(anchors, strides, gts, jnp.zeros(3, bool))
    np.testing.assert_array_equal(none.status, np.where(inside, 0, -1))

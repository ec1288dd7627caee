"""Assignment by the largest IoU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import max_iou
from detlab.ops import boxes as boxes_lib

SEED = 0
NAMES = (
    *("retina", "rpn", "rcnn", "ssd", "band"),
    *("retina_none", "rpn_none", "rcnn_none", "ssd_none", "band_none"),
    "ignore_1",
    "ignore_0",
    "ignore_only",
    "shared_best",
    "far_last",
    "far_first",
    "no_area_last",
    "no_area_first",
    "no_priors",
)
APPROXIMATE = ("ga", "sabl", "ignore", "none")
SLOTS = 12  # more than any case has, so that all cases of one rule share a program


def random_boxes(count, seed, extent=100.0):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, extent, (count, 2)), rng.uniform(5, 50, (count, 2))
    return np.concatenate([low, low + size], axis=-1).astype(np.float32)


def slow_assign(anchors, gts, pos_iou, neg_iou, min_pos_iou):
    """The rule on the whole matrix, one gt at a time; real gts only, all ties, overlap required.

    Anchors are [N, 4], or [N, A, 4] approximations of each.
    """
    overlaps = np.asarray(boxes_lib.pairwise_iou(anchors, gts))
    overlaps = overlaps if anchors.ndim == 2 else overlaps.max(axis=1)  # [N, G]
    best = overlaps.max(axis=1)
    status = np.where(best >= pos_iou, 1, np.where(best < neg_iou, 0, -1))
    matched = overlaps.argmax(axis=1)
    for slot in range(len(gts)):
        largest = overlaps[:, slot].max()
        if largest > 0 and largest >= min_pos_iou:
            claimed = overlaps[:, slot] == largest
            status[claimed], matched[claimed] = 1, slot
    return status, matched, best


@functools.cache
def program(**rules):
    return tiny.jit(functools.partial(max_iou.assign, **rules))


def run_case(case, arrays, require_overlap):
    """Slots hold the boxes of the case, its ignored areas, then padding; gt_inds as in the case."""
    args = case["args"]
    gts, areas = arrays["gt_boxes"], arrays.get("ignore", np.zeros((0, 4), np.float32))
    slots = np.zeros((SLOTS, 4), np.float32)
    slots[: len(gts) + len(areas)] = np.concatenate([gts, areas])
    index = np.arange(SLOTS)
    neg_iou = args["neg_iou_thr"]
    assign = program(
        pos_iou=args["pos_iou_thr"],
        neg_iou=tuple(neg_iou) if isinstance(neg_iou, list) else neg_iou,
        min_pos_iou=args["min_pos_iou"],
        low_quality=args.get("match_low_quality", True),
        all_ties=args.get("gt_max_assign_all", True),
        require_overlap=require_overlap,
        ignore_iof=args.get("ignore_iof_thr", -1.0),
        ignore_wrt_anchors=args.get("ignore_wrt_candidates", True),
    )
    result = assign(
        arrays["priors"],
        slots,
        index < len(gts),
        gt_ignore=(index >= len(gts)) & (index < len(gts) + len(areas)),
        approximations=arrays.get("approxs"),
    )
    return result, np.where(result.status == 1, result.matched + 1, result.status)


@pytest.mark.parametrize(
    "name", [f"max_iou_{x}" for x in NAMES] + [f"approx_max_iou_{x}" for x in APPROXIMATE]
)
def test_assignment_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("assign")[name]
    result, gt_inds = run_case(case, arrays, require_overlap=False)
    np.testing.assert_array_equal(gt_inds, arrays["gt_inds"])
    np.testing.assert_allclose(result.max_iou, arrays["max_overlaps"], **case["tolerance"])
    labels = np.append(arrays["gt_labels"], -1)[np.where(gt_inds > 0, gt_inds - 1, -1)]
    np.testing.assert_array_equal(labels, arrays["labels"])


@pytest.mark.parametrize("name", ["far_last", "far_first", "no_area_last", "no_area_first"])
def test_an_object_that_meets_no_anchor_claims_none(unit_cases, name):
    """The reference gives it every anchor that it does not overlap; here they do not change."""
    case, arrays = unit_cases("assign")[f"max_iou_{name}"]
    gts = arrays["gt_boxes"]
    met = boxes_lib.pairwise_iou(arrays["priors"], gts).max(axis=0) > 0
    assert not met.all()
    _, gt_inds = run_case(case, arrays, require_overlap=True)
    status, matched, _ = slow_assign(arrays["priors"], gts, 0.5, 0.4, 0.0)
    np.testing.assert_array_equal(gt_inds, np.where(status == 1, matched + 1, status))
    assert set(gt_inds[gt_inds > 0] - 1) == set(np.flatnonzero(met))


def test_random_images_equal_the_matrix_rule():
    """20 images in one vmap; also shows that an image alone equals the image in a batch."""
    anchors = random_boxes(400, SEED)
    gts = np.stack([random_boxes(9, SEED + 1 + i) for i in range(20)])
    counts = np.arange(20) % 9 + 1
    valid = np.arange(9) < counts[:, None]
    assign = functools.partial(max_iou.assign, pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.2)
    batched = tiny.jit(jax.vmap(assign, (None, 0, 0)))(anchors, gts, valid)
    for i, count in enumerate(counts):
        status, matched, best = slow_assign(anchors, gts[i, :count], 0.5, 0.4, 0.2)
        np.testing.assert_array_equal(batched.status[i], status, err_msg=f"image {i}")
        np.testing.assert_array_equal(batched.matched[i], matched, err_msg=f"image {i}")
        np.testing.assert_allclose(batched.max_iou[i], best, rtol=1e-6)


def test_rule_by_hand():
    gt = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    anchors = jnp.array(
        [[0.0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 3], [20, 20, 30, 30]]
    )  # IoU 0.6, 0.45, 0.3, 0
    result = max_iou.assign(anchors, gt, jnp.array([True]), 0.5, 0.4, 0.0)
    np.testing.assert_array_equal(result.status, [1, -1, 0, 0])
    np.testing.assert_array_equal(result.matched, 0)
    np.testing.assert_allclose(result.max_iou, [0.6, 0.45, 0.3, 0.0], rtol=1e-6)
    assert result.status.dtype == result.matched.dtype == jnp.int32


def test_equal_anchors_all_match_or_only_the_first():
    anchors = jnp.array([[50.0, 50, 60, 60], [0, 0, 10, 3], [0, 7, 10, 10], [0, 0, 10, 2]])
    gt, valid = jnp.array([[0.0, 0.0, 10.0, 10.0]]), jnp.array([True])
    both = max_iou.assign(anchors, gt, valid, 0.5, 0.4, 0.0)
    np.testing.assert_array_equal(both.status, [0, 1, 1, 0])
    first = max_iou.assign(anchors, gt, valid, 0.5, 0.4, 0.0, all_ties=False)
    np.testing.assert_array_equal(first.status, [0, 1, 0, 0])


def test_a_later_object_takes_a_shared_best_anchor():
    anchors = jnp.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    gts = jnp.array([[0.0, 0, 10, 9], [0, 0, 10, 2]])
    result = max_iou.assign(anchors, gts, jnp.ones(2, bool), 0.5, 0.4, 0.0)
    np.testing.assert_array_equal(result.status, [1, 0])
    assert result.matched[0] == 1
    np.testing.assert_allclose(result.max_iou[0], 0.9, rtol=1e-6)


def test_every_object_finds_its_best_anchors_among_many_equal_ones():
    """A grid of one anchor size, objects on the lattice: the best IoU is shared by up to four."""
    x, y = np.meshgrid(np.arange(60) * 8.0, np.arange(60) * 8.0)
    corners = np.stack([x.ravel(), y.ravel()], axis=-1)
    anchors = np.concatenate([corners, corners + 32], axis=-1).astype(np.float32)
    rng = np.random.default_rng(SEED)
    low = 8 * rng.integers(0, 55, (30, 2)) + rng.choice([0, 4], (30, 2))
    gts = np.concatenate([low, low + 24], axis=-1).astype(np.float32)
    result = program(pos_iou=0.9, neg_iou=0.4, min_pos_iou=0.0)(anchors, gts, np.ones(30, bool))
    status, matched, _ = slow_assign(anchors, gts, 0.9, 0.4, 0.0)
    np.testing.assert_array_equal(result.status, status)
    np.testing.assert_array_equal(result.matched, matched)
    assert (status == 1).sum() > 30


def test_invalid_anchors_are_ignored_and_are_nobodys_best():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 3], [50, 50, 60, 60]])
    gt = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    result = max_iou.assign(
        anchors, gt, jnp.array([True]), 0.5, 0.4, 0.0, anchor_valid=jnp.array([False, True, True])
    )
    np.testing.assert_array_equal(result.status, [-1, 1, 0])
    np.testing.assert_allclose(result.max_iou, [-1.0, 0.3, 0.0], rtol=1e-6)
    nothing = max_iou.assign(
        anchors, gt, jnp.array([False]), 0.5, 0.4, 0.0, anchor_valid=jnp.array([False, True, True])
    )
    np.testing.assert_array_equal(nothing.status, [-1, 0, 0])


def test_approximations_overlap_for_their_anchor():
    """The anchor itself meets no object; the second of its approximations is the object."""
    anchors = jnp.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    gt, valid = jnp.array([[20.0, 0.0, 30.0, 10.0]]), jnp.array([True])
    around = jnp.array([[[20.0, 0, 30, 3], [20, 0, 30, 10]], [[50, 50, 60, 60], [50, 50, 60, 70]]])
    result = max_iou.assign(anchors, gt, valid, 0.5, 0.4, 0.0, approximations=around)
    np.testing.assert_array_equal(result.status, [1, 0])
    np.testing.assert_allclose(result.max_iou, [1.0, 0.0])


@pytest.mark.parametrize("count", [1, 3])
def test_random_approximations_equal_the_matrix_rule(count):
    around = random_boxes(400 * count, SEED).reshape(400, count, 4)
    gts = random_boxes(5, SEED + 1)
    assign = program(pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.2)
    found = assign(around[:, 0], gts, np.ones(5, bool), approximations=around)
    status, matched, best = slow_assign(around, gts, 0.5, 0.4, 0.2)
    np.testing.assert_array_equal(found.status, status)
    np.testing.assert_array_equal(found.matched, matched)
    np.testing.assert_allclose(found.max_iou, best, rtol=1e-6)


@pytest.mark.parametrize("require_overlap", [True, False])
def test_padded_slots_change_nothing(require_overlap):
    anchors, gts = random_boxes(400, SEED), random_boxes(5, SEED + 1)
    assign = program(pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.0, require_overlap=require_overlap)
    plain = assign(anchors, gts, np.ones(5, bool))
    padded = assign(anchors, np.pad(gts, ((0, 4), (0, 0))), np.arange(9) < 5)
    for a, b in zip(plain, padded):
        np.testing.assert_array_equal(a, b)


def test_the_threshold_may_be_traced():
    anchors, gts = random_boxes(400, SEED), random_boxes(5, SEED + 1)

    @tiny.jit
    def count(threshold):
        result = max_iou.assign(
            anchors, gts, jnp.ones(5, bool), threshold, threshold, threshold, low_quality=False
        )
        return (result.status == 1).sum()

    assert count(0.3) > count(0.5) > 0


def test_ignored_areas_without_a_mask_raise():
    with pytest.raises(ValueError, match="gt_ignore"):
        max_iou.assign(
            jnp.zeros((2, 4)), jnp.zeros((1, 4)), jnp.ones(1, bool), 0.5, 0.4, 0.0, ignore_iof=0.5
        )

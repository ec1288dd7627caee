"""Soft-NMS: the three rules, the fixed slots and the classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import nms as nms_lib
from detlab.ops import soft_nms as soft_nms_lib

SEED = 0
COUNT = 90
METHODS = ("linear", "gaussian", "naive")
RULES = dict(iou_threshold=0.4, sigma=0.3, min_score=0.05)


@functools.cache
def program(max_outputs, method):
    """One compilation for all thresholds, which may be traced."""

    @jax.jit
    def run(boxes, scores, valid, labels, iou_threshold, sigma, min_score):
        return soft_nms_lib.soft_nms(
            boxes,
            scores,
            valid,
            max_outputs,
            labels,
            method=method,
            iou_threshold=iou_threshold,
            sigma=sigma,
            min_score=min_score,
        )

    return run


def run(boxes, scores, valid=None, labels=None, *, max_outputs=COUNT, method="linear", **rules):
    """Soft-NMS of boxes padded to COUNT, so that few programs are compiled."""
    space = COUNT - len(boxes)
    valid = np.ones(len(boxes), bool) if valid is None else valid
    labels = np.zeros(len(boxes), np.int32) if labels is None else labels
    return program(max_outputs, method)(
        np.pad(np.asarray(boxes, np.float32), ((0, space), (0, 0))),
        np.pad(np.asarray(scores, np.float32), (0, space), constant_values=7),
        np.pad(valid, (0, space)),
        np.pad(labels, (0, space)),
        **(RULES | rules),
    )


def slow_soft_nms(boxes, scores, valid, labels, method, iou_threshold, sigma, min_score):
    """A loop over a list of the remaining boxes, in float64."""
    boxes, scores = boxes.astype(np.float64), scores.astype(np.float64)
    left = [i for i in range(len(boxes)) if valid[i] and scores[i] >= min_score]
    taken = []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        taken.append((best, scores[best]))
        for i in left:
            low = np.maximum(boxes[i, :2], boxes[best, :2])
            high = np.minimum(boxes[i, 2:], boxes[best, 2:])
            intersection = np.maximum(high - low, 0).prod()
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[best])]
            overlap = intersection / max(sum(areas) - intersection, 1e-6)
            if labels[i] != labels[best]:
                continue
            if method == "gaussian":
                scores[i] *= np.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                scores[i] *= 1 - overlap if method == "linear" else 0
        left = [i for i in left if scores[i] >= min_score]
    return [i for i, _ in taken], [score for _, score in taken]


def random_image(seed):
    """Boxes with many overlaps, and continuous, so that no IoU lies on a threshold."""
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(-20, 60, (COUNT, 2)), rng.uniform(0, 60, (COUNT, 2))
    boxes = np.concatenate([low, low + size], axis=-1).astype(np.float32)
    scores = rng.uniform(0, 1, COUNT).astype(np.float32)
    return boxes, scores, rng.uniform(size=COUNT) < 0.8, rng.integers(0, 3, COUNT).astype(np.int32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [30, 50])
def test_soft_nms_equals_the_reference(unit_cases, method, threshold):
    case, arrays = unit_cases("nms")[f"soft_nms_{method}_{threshold}"]
    indices, scores, keep = run(arrays["boxes"], arrays["scores"], **case["args"])
    np.testing.assert_array_equal(indices[keep], arrays["keep"])
    np.testing.assert_allclose(scores[keep], arrays["dets"][:, 4], **case["tolerance"])


def test_class_aware_soft_nms_equals_the_reference(unit_cases):
    case, arrays = unit_cases("nms")["batched_soft_nms"]
    args = {k: v for k, v in case["args"].items() if k != "type"}
    boxes, labels = arrays["boxes"], arrays["labels"]
    indices, scores, keep = run(boxes, arrays["scores"], labels=labels, **args)
    np.testing.assert_array_equal(indices[keep], arrays["keep"])
    np.testing.assert_allclose(scores[keep], arrays["dets"][:, 4], **case["tolerance"])


@pytest.mark.parametrize("method", METHODS)
def test_random_images_equal_a_list_that_shrinks(method):
    for seed in range(8):
        image = random_image([SEED, seed])
        indices, scores, keep = run(*image, method=method)
        expected, expected_scores = slow_soft_nms(*image, method, **RULES)
        np.testing.assert_array_equal(indices[keep], expected, err_msg=f"seed {seed}")
        # A score is a product of up to COUNT factors, each rounded to 1e-7 of itself.
        np.testing.assert_allclose(scores[keep], expected_scores, rtol=2e-5)


def test_three_boxes_by_hand():
    """B covers the upper half of A (IoU 0.5), C is apart, D equals A."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60], [0, 0, 10, 10]])
    scores = np.array([0.9, 0.8, 0.5, 0.7])
    indices, lowered, keep = run(boxes, scores)
    np.testing.assert_array_equal(indices[keep], [0, 2, 1])  # D: 0.7 * (1 - 1) is below min_score
    np.testing.assert_allclose(lowered[keep], [0.9, 0.5, 0.4], rtol=1e-6)
    indices, lowered, keep = run(boxes, scores, method="gaussian", sigma=1.0)
    # B: 0.8 exp(-1/4) = 0.623; D: 0.7 exp(-1) = 0.2575, then B multiplies it by exp(-1/4).
    np.testing.assert_array_equal(indices[keep], [0, 1, 2, 3])
    np.testing.assert_allclose(lowered[keep], [0.9, 0.62304, 0.5, 0.20055], rtol=1e-4)


def test_an_overlap_on_the_threshold_is_lowered():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]])
    _, lowered, keep = run(boxes, np.array([0.9, 0.8]), iou_threshold=0.5)
    np.testing.assert_allclose(lowered[keep], [0.9, 0.4], rtol=1e-6)
    _, lowered, keep = run(boxes, np.array([0.9, 0.8]), iou_threshold=0.51)
    np.testing.assert_allclose(lowered[keep], [0.9, 0.8])


def test_naive_is_nms_and_a_wide_gaussian_changes_nothing():
    boxes, scores, valid, labels = random_image([SEED, 100])
    indices, _, keep = run(boxes, scores, valid, labels, method="naive")
    plain, plain_keep = nms_lib.nms(boxes, scores, valid & (scores >= 0.05), 0.4, COUNT, labels)
    np.testing.assert_array_equal(indices, plain)
    np.testing.assert_array_equal(keep, plain_keep)
    indices, lowered, keep = run(boxes, scores, valid, method="gaussian", sigma=1e9)
    order = np.argsort(-np.where(valid & (scores >= 0.05), scores, -1))[: keep.sum()]
    np.testing.assert_array_equal(indices[keep], order)
    np.testing.assert_allclose(lowered[keep], scores[order], rtol=1e-6)


def test_few_slots_hold_the_start_of_many_and_scores_fall():
    image = random_image([SEED, 101])
    indices, scores, keep = run(*image)
    few, few_scores, few_keep = run(*image, max_outputs=10)
    many, many_scores, many_keep = run(*image, max_outputs=COUNT + 5)
    np.testing.assert_array_equal(few, indices[:10])
    np.testing.assert_array_equal(few_scores, scores[:10])
    np.testing.assert_array_equal(few_keep, keep[:10])
    np.testing.assert_array_equal(many[:-5], indices)
    assert not many_keep[-5:].any() and not many_scores[-5:].any()
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_array_equal(scores[~keep], 0)
    np.testing.assert_array_equal(indices[~keep], 0)


def test_other_classes_and_invalid_boxes_lower_nothing():
    boxes = np.broadcast_to(np.array([-30.0, -40, 10, 10]), (3, 4))
    scores, labels = np.array([0.3, 0.9, 0.6]), np.array([1, 0, 1])
    out = soft_nms_lib.suppress(boxes, scores, labels, np.ones(3, bool), 4, method="linear")
    np.testing.assert_allclose(out[1], [0.9, 0.6, 0, 0])
    np.testing.assert_array_equal(out[2], [0, 1, 0, 0])
    np.testing.assert_array_equal(out[0], [boxes[0], boxes[0], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(out[3], [True, True, False, False])
    indices, lowered, keep = run(boxes, scores, np.array([True, False, False]))
    np.testing.assert_array_equal(indices[keep], [0])
    np.testing.assert_allclose(lowered[keep], [0.3])


def test_boxes_without_area_lower_nothing_and_give_no_nan():
    boxes = np.array([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    for method in METHODS:
        _, scores, keep = run(boxes, np.array([0.9, 0.8, 0.7]), method=method)
        np.testing.assert_allclose(scores[keep], [0.9, 0.8, 0.7])


def test_equal_scores_take_the_first_and_low_scores_leave_nothing():
    boxes = np.arange(12.0).reshape(3, 4) * [[1], [10], [100]]
    indices, _, keep = run(boxes, np.full(3, 0.5))
    np.testing.assert_array_equal(indices[keep], [0, 1, 2])
    _, scores, keep = run(boxes, np.full(3, 0.04))
    assert not keep.any() and not scores.any()


def test_an_image_alone_equals_the_image_in_a_batch():
    images = [
        np.stack(values) for values in zip(*(random_image([SEED, 200 + i]) for i in range(4)))
    ]
    batched = jax.jit(
        jax.vmap(lambda b, s, v, k: soft_nms_lib.soft_nms(b, s, v, COUNT, k, **RULES))
    )
    together = batched(*images)
    for i in range(4):
        for one, many in zip(run(*(values[i] for values in images)), together):
            np.testing.assert_allclose(one, many[i], rtol=1e-6)


def test_no_boxes_give_empty_slots():
    empty = jnp.zeros((0, 4))
    boxes, scores, labels, keep = soft_nms_lib.suppress(
        empty, jnp.zeros(0), jnp.zeros(0, int), jnp.zeros(0, bool), 5
    )
    np.testing.assert_array_equal(boxes, np.zeros((5, 4)))
    assert scores.shape == labels.shape == (5,) and not keep.any()


def test_bad_arguments_raise():
    flags = jnp.ones(3, bool)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        soft_nms_lib.soft_nms(jnp.zeros(3), jnp.zeros(3), flags, 3)
    with pytest.raises(ValueError, match="not 0"):
        soft_nms_lib.soft_nms(jnp.zeros((3, 4)), jnp.zeros(3), flags, 0)
    with pytest.raises(ValueError, match="'quadratic'"):
        soft_nms_lib.soft_nms(jnp.zeros((3, 4)), jnp.zeros(3), flags, 3, method="quadratic")

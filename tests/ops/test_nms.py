"""Greedy NMS: the two programs, the fixed slots and the classes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import nms as nms_lib

SEED = 0
COUNT = 300  # more than a tile of boxes, and not a multiple of it
BATCH = 125
PROGRAMS = {
    "sequential": jax.jit(jax.vmap(nms_lib._keep_sequential, (0, 0, 0, None, None))),
    "whole": jax.jit(jax.vmap(lambda *a: nms_lib._keep_tiled(*a[:4]), (0, 0, 0, None, None))),
    "tiled": jax.jit(
        jax.vmap(lambda *a: nms_lib._keep_tiled(*a[:4], pairs=0), (0, 0, 0, None, None))
    ),
}
nms = jax.jit(nms_lib.nms, static_argnums=4)
suppress = jax.jit(nms_lib.suppress, static_argnums=5)


def slow_keep(boxes, labels, alive, threshold):
    """Sequential NMS in float32 NumPy: the keep mask of boxes sorted by score."""
    keep = alive.copy()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in range(len(boxes)):
        if keep[i]:
            low = np.maximum(boxes[i, :2], boxes[i + 1 :, :2])
            high = np.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
            intersection = np.maximum(high - low, 0).prod(axis=-1)
            union = np.maximum(area[i] + area[i + 1 :] - intersection, 1e-6)
            same = labels[i] == labels[i + 1 :]
            keep[i + 1 :] &= ~((intersection / union > np.float32(threshold)) & same)
    return keep


def slow_nms(boxes, scores, valid, threshold, labels):
    order = np.argsort(np.where(valid, -scores, np.inf), kind="stable")
    return order[slow_keep(boxes[order], labels[order], valid[order], threshold)]


def random_images(images, count, seed):
    """Clusters of integer boxes, some with negative coordinates: many overlaps and equal scores.

    Areas of small integers are exact in float32, so rounding decides no comparison.
    """
    rng = np.random.default_rng(seed)
    spread = rng.choice([40, 200, 1000], (images, 1, 1))
    low = rng.integers(-20, spread, (images, count, 2))
    size = rng.integers(0, 60, (images, count, 2))
    boxes = np.concatenate([low, low + size], axis=-1).astype(np.float32)
    scores = (rng.integers(0, 50, (images, count)) / 50).astype(np.float32)
    labels = rng.integers(0, 3, (images, count)).astype(np.int32)
    share = rng.choice([0.0, 0.5, 1.0], (images, 1))
    valid = rng.uniform(size=(images, count)) < share
    return boxes, scores, labels, valid


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5, 0.7])
@pytest.mark.parametrize("classes", [False, True])
def test_keep_mask_equals_a_sequential_loop_on_1000_images(program, threshold, classes):
    """8 combinations of threshold and classes, 125 images each: empty, half full and full."""
    seed = [SEED, int(100 * threshold), classes]
    boxes, _, labels, valid = random_images(BATCH, COUNT, seed)
    labels = labels if classes else np.zeros_like(labels)
    keep = np.asarray(PROGRAMS[program](boxes, labels, valid, threshold, COUNT))
    assert {0, COUNT} <= set(valid.sum(axis=1))
    for i in range(BATCH):
        expected = slow_keep(boxes[i], labels[i], valid[i], threshold)
        np.testing.assert_array_equal(keep[i], expected, err_msg=f"seed {seed}, image {i}")


@pytest.mark.parametrize("max_outputs", [1, 20, COUNT, COUNT + 7])
def test_slots_hold_the_best_of_the_sequential_loop(max_outputs):
    boxes, scores, labels, valid = random_images(16, COUNT, SEED + 1)
    batched = jax.jit(jax.vmap(lambda b, s, v, k: nms_lib.nms(b, s, v, 0.5, max_outputs, k)))
    indices, keep = batched(boxes, scores, valid, labels)
    assert indices.shape == keep.shape == (16, max_outputs)
    assert indices.dtype == jnp.int32 and keep.dtype == bool
    for i in range(16):
        expected = slow_nms(boxes[i], scores[i], valid[i], 0.5, labels[i])[:max_outputs]
        np.testing.assert_array_equal(indices[i, : len(expected)], expected)
        np.testing.assert_array_equal(indices[i, len(expected) :], 0)
        np.testing.assert_array_equal(keep[i], np.arange(max_outputs) < len(expected))


def test_an_image_alone_equals_the_image_in_a_batch():
    boxes, scores, labels, valid = random_images(8, COUNT, SEED + 2)
    batched = jax.jit(jax.vmap(lambda b, s, k, v: nms_lib.suppress(b, s, k, v, 0.6, 50)))
    together = batched(boxes, scores, labels, valid)
    for i in range(8):
        alone = suppress(boxes[i], scores[i], labels[i], valid[i], 0.6, 50)
        for one, many in zip(alone, together):
            np.testing.assert_array_equal(one, many[i])


@pytest.mark.parametrize("name", ["nms_30", "nms_45", "nms_50", "nms_70", "nms_limits"])
def test_nms_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("nms")[name]
    args = case["args"]
    scores = arrays["scores"]
    valid = scores > args.get("score_threshold", -1)
    max_outputs = args.get("max_num", len(scores))
    indices, keep = nms(arrays["boxes"], scores, valid, args["iou_threshold"], max_outputs)
    np.testing.assert_array_equal(indices[keep], arrays["keep"])


@pytest.mark.parametrize("name", ["batched_nms_45", "batched_nms_50", "batched_nms_70"])
def test_class_aware_nms_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("nms")[name]
    boxes, scores, labels = arrays["boxes"], arrays["scores"], arrays["labels"]
    valid = np.ones(len(boxes), bool)
    threshold = case["args"]["iou_threshold"]
    indices, keep = nms(boxes, scores, valid, threshold, len(boxes), labels)
    np.testing.assert_array_equal(indices[keep], arrays["keep"])
    kept, kept_scores, kept_labels, filled = suppress(
        boxes, scores, labels, valid, threshold, len(boxes)
    )
    dets = np.concatenate([kept, kept_scores[:, None]], axis=-1)[filled]
    np.testing.assert_array_equal(dets, arrays["dets"])
    np.testing.assert_array_equal(kept_labels[filled], labels[arrays["keep"]])


def test_suppressed_box_does_not_suppress_others():
    """A chain: A and B, B and C have IoU 0.43, A and C none, so greedy NMS keeps A and C."""
    boxes = jnp.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores, valid = jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool)
    indices, keep = nms(boxes, scores, valid, 0.4, 3)
    np.testing.assert_array_equal(indices[keep], [0, 2])
    for keep_mask in PROGRAMS.values():
        kept = keep_mask(boxes[None], jnp.zeros((1, 3), int), valid[None], 0.4, 3)
        np.testing.assert_array_equal(kept[0], [True, False, True])


@pytest.mark.parametrize("count", [1, 2, 8, 9, COUNT])
def test_a_long_chain_of_suppression_is_settled(count):
    """Each box overlaps the next one alone, so every second one is kept: a round for each box."""
    low = 4.0 * np.arange(COUNT, dtype=np.float32)
    boxes = np.stack([low, 0 * low, low + 10, 0 * low + 10], -1)[None]
    alive = (np.arange(COUNT) < count)[None]
    for keep_mask in PROGRAMS.values():
        kept = keep_mask(boxes, np.zeros((1, COUNT), np.int32), alive, 0.4, COUNT)
        np.testing.assert_array_equal(kept[0], alive[0] & (np.arange(COUNT) % 2 == 0))


def loops(count, platform):
    """Bounds of the loops of suppression before compilation, None for a data-dependent one."""
    shapes = [
        jax.ShapeDtypeStruct((count, 4), "float32"),
        jax.ShapeDtypeStruct((count,), "float32"),
    ]
    shapes.append(jax.ShapeDtypeStruct((count,), bool))
    traced = jax.jit(lambda *a: nms_lib.nms(*a, 0.5, 100)).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    conditions = re.findall(r"stablehlo\.while.*?cond \{(.*?)\} do", text, re.DOTALL)
    bounds = [re.search(r"dense<(\d+)> : tensor<i32>", text) for text in conditions]
    return [int(bound[1]) if bound else None for bound in bounds]


def test_accelerators_compare_all_boxes_in_one_step():
    """The only other loop repeats the rounds that settle a tile, where they were too few."""
    assert loops(5792, "cuda") == loops(5792, "tpu") == [1, None]
    assert loops(5793, "cuda") == [2, None]
    assert len(loops(5792, "cpu")) == 1


def test_equal_scores_keep_the_first_and_the_threshold_itself_keeps_both():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])  # IoU 0.5, 0.5, 1
    run = functools.partial(nms, boxes, jnp.full(3, 0.5), jnp.ones(3, bool))
    indices, keep = run(0.5, 3)
    np.testing.assert_array_equal(indices[keep], [0, 1])
    indices, keep = run(0.49, 3)
    np.testing.assert_array_equal(indices[keep], [0])


def test_invalid_boxes_neither_survive_nor_suppress():
    boxes = jnp.broadcast_to(jnp.array([0.0, 0, 10, 10]), (3, 4))
    valid = jnp.array([False, True, False])
    indices, keep = nms(boxes, jnp.array([0.9, 0.1, 0.5]), valid, 0.5, 3)
    np.testing.assert_array_equal(indices, [1, 0, 0])
    np.testing.assert_array_equal(keep, [True, False, False])


def test_boxes_of_other_classes_survive_even_with_negative_coordinates():
    boxes = jnp.broadcast_to(jnp.array([-30.0, -40, 10, 10]), (3, 4))
    scores, labels = jnp.array([0.3, 0.9, 0.6]), jnp.array([1, 0, 1])
    out = suppress(boxes, scores, labels, jnp.ones(3, bool), 0.5, 3)
    np.testing.assert_allclose(out[1], [0.9, 0.6, 0.0])
    np.testing.assert_array_equal(out[2], [0, 1, 0])
    np.testing.assert_array_equal(out[0][2], 0.0)
    np.testing.assert_array_equal(out[3], [True, True, False])


def test_boxes_without_area_suppress_nothing():
    boxes = jnp.array([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    indices, keep = nms(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), 0.3, 3)
    np.testing.assert_array_equal(indices[keep], [0, 1, 2])


def test_padding_changes_nothing():
    boxes, scores, labels, valid = (x[0] for x in random_images(1, COUNT, SEED + 3))
    out = suppress(boxes, scores, labels, valid, 0.5, 40)
    padding = ((0, 100),)
    padded = suppress(
        np.pad(boxes, (*padding, (0, 0))),
        np.pad(scores, padding, constant_values=9.0),
        np.pad(labels, padding),
        np.pad(valid, padding),
        0.5,
        40,
    )
    for a, b in zip(out, padded):
        np.testing.assert_array_equal(a, b)


def test_no_boxes_give_empty_slots(unit_cases):
    _, arrays = unit_cases("nms")["batched_nms_none"]
    valid = np.zeros(0, bool)
    indices, keep = nms(arrays["boxes"], arrays["scores"], valid, 0.5, 5, arrays["labels"])
    np.testing.assert_array_equal(indices, np.zeros(5))
    assert not keep.any()
    out = suppress(arrays["boxes"], arrays["scores"], arrays["labels"], valid, 0.5, 5)
    np.testing.assert_array_equal(out[0], np.zeros((5, 4)))
    assert not out[3].any()


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        nms_lib.nms(jnp.zeros((2, 3, 4)), jnp.zeros(3), jnp.ones(3, bool), 0.5, 3)
    with pytest.raises(ValueError, match="not 0"):
        nms_lib.nms(jnp.zeros((3, 4)), jnp.zeros(3), jnp.ones(3, bool), 0.5, 0)


def test_distance_of_centres_saves_boxes_of_another_place():
    """Darknet's greedynms: IoU - (d^2 / c^2)^0.6, by hand, in both programs."""
    boxes = np.float32([[0, 0, 10, 10], [0, 3, 10, 13], [0, 0, 10, 11]])
    # First and second: IoU 70 / 130, centres 3 apart, enclosing diagonal sqrt(269).
    measures = [70 / 130 - (9 / 269) ** 0.6, 100 / 110 - (0.25 / 221) ** 0.6]
    assert 0.4 < measures[0] < 0.45 < 70 / 130 and measures[1] > 0.45
    scores, labels = np.float32([0.9, 0.8, 0.7]), np.zeros(3, np.int32)
    for above, kept in ((nms_lib.iou_above, [0]), (nms_lib.distance_iou_above, [0, 1])):
        tiled, sequential = nms_lib._keep_tiled, nms_lib._keep_sequential
        for keep in (tiled, functools.partial(sequential, max_outputs=3)):
            arrays = (jnp.array(x) for x in (boxes, labels, np.ones(3, bool)))
            found = keep(*arrays, 0.45, above=above)
            np.testing.assert_array_equal(np.flatnonzero(found), kept)
        indices, keep = nms_lib.nms(boxes, scores, np.ones(3, bool), 0.45, 3, above=above)
        np.testing.assert_array_equal(indices[keep], kept)


def test_distance_is_relative_to_a_canvas_that_is_not_square():
    """On a canvas twice as wide as high, a step along x counts half as much as one along y."""
    first = np.float32([0, 0, 10, 10])
    across, down = np.float32([3, 0, 13, 10]), np.float32([0, 3, 10, 13])
    # In units of 1 px along x and 2 along y: 13 x 20 around both, then 10 x 26.
    values = 70 / 130 - np.array([9 / (13**2 + 20**2), 36 / (10**2 + 26**2)]) ** 0.7
    for step, expected in ((-1e-6, True), (1e-6, False)):
        for second, value in zip((across, down), values):
            found = nms_lib.distance_iou_above(first, second, value + step, 0.7, aspect=2.0)
            assert found == expected


@pytest.mark.parametrize("power", [0.6, 0.5, 1.0, 0.75, 0.61803])
def test_the_verdict_is_that_of_the_real_power_in_double_precision(power):
    """Of all pairs but those within rounding; the last power has no small integers."""
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 60, (2, 20000, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(1, 60, corner.shape)], -1))
    boxes[1, :10000] = boxes[0, :10000] + np.float32(rng.normal(0, 4, (10000, 4)))
    a, b = np.float64(boxes)
    shared = np.maximum(np.minimum(a, b)[:, 2:] - np.maximum(a, b)[:, :2], 0).prod(-1)
    iou = shared / ((a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - shared)
    outer = np.maximum(a, b)[:, 2:] - np.minimum(a, b)[:, :2]
    centre = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    value = iou - ((centre**2).sum(-1) / (outer**2).sum(-1)) ** power
    above = jax.jit(functools.partial(nms_lib.distance_iou_above, power=power))
    for threshold in (0.0, 0.2, 0.45, 0.6):
        clear = np.abs(value - threshold) > 1e-6
        assert clear.mean() > 0.99 and 0.01 < (value > threshold).mean() < 0.9
        np.testing.assert_array_equal(
            above(*boxes, np.float32(threshold))[clear], (value > threshold)[clear]
        )


def test_a_measure_equal_to_the_threshold_is_not_above_it_and_the_next_number_is():
    """IoU 1/2 and d^2 / c^2 = 4 / 128, whose power 3/5 is 1/8: all numbers are exact."""
    above = jax.jit(nms_lib.distance_iou_above)
    first, second = np.float32([0, 0, 8, 8]), np.float32([4, 0, 8, 8])
    threshold = np.float32(1 / 2 - 1 / 8)
    assert not above(first, second, threshold)
    assert above(first, second, np.nextafter(threshold, np.float32(0)))
    # One centre, and an IoU that exceeds the threshold by one bit.
    second = np.float32([0, 2, 8, 6])
    assert not above(first, second, np.float32(0.5))
    assert above(first, second, np.nextafter(np.float32(0.5), np.float32(0)))


def test_without_classes_boxes_of_others_suppress_too():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 11]])
    arguments = boxes, np.float32([0.9, 0.8]), np.int32([0, 1]), np.ones(2, bool), 0.5, 2
    assert nms_lib.suppress(*arguments)[3].sum() == 2
    assert nms_lib.suppress(*arguments, by_class=False)[3].sum() == 1


def slow_leaders(boxes, scores, valid, threshold):
    """The leader of each box, group by group; the loop of mmcv's `nms_match`."""
    leader, left = np.arange(len(boxes)), [i for i in range(len(boxes)) if valid[i]]
    left.sort(key=lambda i: -scores[i])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    while left:
        best, rows = left[0], np.array(left)
        low = np.maximum(boxes[best, :2], boxes[rows, :2])
        inter = np.maximum(np.minimum(boxes[best, 2:], boxes[rows, 2:]) - low, 0).prod(-1)
        union = np.maximum(area[best] + area[rows] - inter, np.float32(1e-6))
        reached = (inter / union >= np.float32(threshold)) | (rows == best)
        leader[rows[reached]] = best
        left = rows[~reached].tolist()
    return leader


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_leaders_are_those_of_a_loop_over_groups(threshold):
    boxes, scores, _, valid = random_images(40, COUNT, SEED + 7)
    find = jax.jit(jax.vmap(lambda *image: nms_lib.leaders(*image, threshold)))
    found = np.asarray(find(boxes, scores, valid))
    for i, image in enumerate(zip(boxes, scores, valid, strict=True)):
        np.testing.assert_array_equal(found[i], slow_leaders(*image, threshold), err_msg=f"{i}")

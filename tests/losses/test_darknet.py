"""Darknet's losses: their values, and darknet's deltas as minus their gradients."""

import functools

import darknet_deltas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import darknet as assign
from detlab.heads import darknet as heads
from detlab.losses import darknet
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib

SEED = 2
NUM_CLASSES = 4


ROWS = 60


@functools.cache
def overlap(kind):
    """(boxes, targets, growth, weight, max_delta) -> (losses, their gradient by raw)."""

    def compute(boxes, targets, growth, weight, max_delta):
        def loss(raw):
            return darknet.overlap(raw, boxes, targets, growth, kind, weight, max_delta)

        values, pull = jax.vjp(loss, jnp.zeros_like(boxes))
        return values, pull(jnp.ones_like(values))[0]

    return tiny.jit(compute)


def pairs(count=ROWS):
    """Boxes that overlap, that are apart along one axis, and along both."""
    rng = np.random.default_rng(SEED)
    truths = np.concatenate(
        [rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.05, 0.4, (count, 2))], 1
    )
    boxes = truths.copy()
    boxes[:, :2] += rng.normal(0, 0.15, (count, 2))
    boxes[:, 2:] *= np.exp(rng.normal(0, 0.4, (count, 2)))
    growth = np.exp(rng.normal(0, 1, (count, 2)))
    return np.float32(boxes), np.float32(truths), np.float32(growth)


def deltas(boxes, truths, growth, kind):
    rows = [
        darknet_deltas.overlap_direction(tuple(map(float, b)), tuple(map(float, t)), kind)
        for b, t in zip(boxes, truths)
    ]
    return np.array(rows) * np.concatenate([np.ones_like(growth), growth], axis=1)


@pytest.mark.parametrize("kind", darknet.KINDS[1:])
def test_the_descent_of_the_overlap_is_darknets_delta(kind):
    boxes, truths, growth = pairs()
    inner = np.array([darknet_deltas.spans(b, t)[0] for b, t in zip(boxes, truths)])
    apart = (inner <= 0).sum(axis=1)
    assert {0, 1, 2} == set(apart), "all three cases occur"
    weight = np.linspace(0.5, 2, ROWS, dtype=np.float32)
    _, gradient = overlap(kind)(boxes, truths, growth, weight, np.inf)
    expected = weight[:, None] * deltas(boxes, truths, growth, kind)
    # Float32 against float64: differences of nearly equal terms lose some digits.
    np.testing.assert_allclose(-gradient, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())
    if kind != "iou":
        assert expected.any(axis=1).all(), "boxes without overlap have a gradient"


def test_deltas_are_bounded_one_by_one_after_the_weight():
    boxes, truths, growth = pairs()
    weight = np.full(ROWS, 0.5, np.float32)
    _, gradient = overlap("ciou")(boxes, truths, growth, weight, 1.5)
    expected = 0.5 * deltas(boxes, truths, growth, "ciou")
    assert (np.abs(expected) > 1.5).any() and (np.abs(expected) < 1).any()
    expected = np.clip(expected, -1.5, 1.5)
    np.testing.assert_allclose(-gradient, expected, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("kind", darknet.KINDS[1:])
def test_the_value_is_one_minus_the_overlap(kind):
    boxes, truths, growth = pairs()
    weight = np.linspace(0.5, 2, ROWS, dtype=np.float32)
    values, _ = overlap(kind)(boxes, truths, growth, weight, np.inf)
    measures = {"iou": boxes_lib.iou, "giou": boxes_lib.giou}
    measures |= {"diou": boxes_lib.diou, "ciou": lambda a, b: boxes_lib.ciou(a, b, -1.0)}
    # Scaled by 1e4, far above the smallest area that these measures allow.
    corners = [boxes_lib.cxcywh_to_xyxy(jnp.asarray(x) * 1e4) for x in (boxes, truths)]
    np.testing.assert_allclose(
        values, weight * (1 - tiny.jit(measures[kind])(*corners)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", darknet.KINDS[1:])
def test_degenerate_boxes_have_finite_values_and_slopes(kind):
    """Equal boxes, boxes without width or without size, infinite and NaN boxes, padding."""
    truth = np.tile(np.float32([0.5, 0.5, 0.2, 0.1]), (ROWS, 1))
    boxes, growth = truth.copy(), np.ones((ROWS, 2), np.float32)
    boxes[1, 2], growth[1, 0] = 0, 0
    boxes[2, 2:], growth[2] = 0, 0
    boxes[3, 2], growth[3, 0] = np.inf, np.inf
    boxes[4, 2:], growth[4] = np.inf, np.inf
    boxes[5] = np.nan
    truth[6] = 1.0  # a slot without an object
    values, gradient = overlap(kind)(boxes, truth, growth, np.ones(ROWS, np.float32), np.inf)
    assert np.isfinite(values).all() and np.isfinite(gradient).all()
    assert values[0] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(values[3:6], 1, rtol=1e-5)
    np.testing.assert_array_equal(gradient[3:6], 0)
    usable = np.array([0, 1, 2, 6])
    expected = deltas(boxes[usable], truth[usable], growth[usable], kind)
    # For equal boxes, terms of about 20 cancel.
    np.testing.assert_allclose(-np.asarray(gradient)[usable], expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="'mse'"):
        darknet.overlap_deltas(jnp.ones(4), jnp.ones(4), jnp.ones(2), "mse")


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_place_is_a_cross_entropy_whose_descent_is_the_distance_to_the_target(scale):
    rng = np.random.default_rng(SEED)
    raw = np.float32(rng.normal(0, 2, (20, 2)))
    targets = np.float32(rng.uniform(0, 1, (20, 2)))
    compute = tiny.jit(jax.value_and_grad(lambda x: darknet.place(x, targets, scale).sum()))
    value, gradient = compute(raw)
    sigmoid = darknet_deltas.sigmoid(raw)
    there = scale * sigmoid - (scale - 1) / 2
    np.testing.assert_allclose(-gradient, targets - there, rtol=1e-4, atol=1e-6)
    wanted = (targets + (scale - 1) / 2) / scale
    entropy = -(wanted * np.log(sigmoid) + (1 - wanted) * np.log(1 - sigmoid))
    assert value == pytest.approx(scale * entropy.sum(), rel=1e-5)


def test_size_is_half_a_square():
    raw, target = jnp.array([1.0, -2.0]), jnp.array([0.5, -1.0])
    np.testing.assert_allclose(darknet.size(raw, target), [0.125, 0.5])
    np.testing.assert_allclose(jax.grad(lambda x: darknet.size(x, target).sum())(raw), [0.5, -1.0])


@pytest.mark.parametrize(
    "keys",
    [
        dict(),
        dict(label_smooth_eps=0.2),
        dict(counters_per_class=(10, 40, 0, 20), cls_normalizer=0.5, max_delta=30.0),
        dict(focal_loss=True),
        dict(focal_loss=True, counters_per_class=(10, 40, 0, 20), label_smooth_eps=0.2),
    ],
)
def test_classes_learn_what_objects_write_one_after_another(keys):
    head = darknet_deltas.Head((), (), **keys)
    rng = np.random.default_rng(SEED)
    rows = [[0], [2, 1], [1, 1], [3, 0, 3, 0], [1, 2, 3, 0], []]  # labels in order
    logits = np.float32(rng.normal(0, 1.5, (len(rows), NUM_CLASSES)))
    scores = darknet_deltas.sigmoid(logits)
    expected = np.zeros_like(scores)
    for i, labels in enumerate(rows):
        for label in labels:
            darknet_deltas.write_class(expected[i], scores[i], label, head)
    first = np.array([labels[0] if labels else -1 for labels in rows])
    later = np.array([[c in labels[1:] for c in range(NUM_CLASSES)] for labels in rows])
    rules = (
        darknet.class_multipliers(head.counters_per_class, head.max_delta),
        head.cls_normalizer,
        head.label_smooth_eps,
        head.focal_loss,
    )
    found = tiny.jit(lambda *args: darknet.class_targets(*args, *rules))
    targets, weights = found(np.float32(scores), first, later)
    found = weights * (targets - np.float32(scores))
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-5, atol=1e-6)


def test_an_own_score_takes_the_place_of_the_first_objects_one():
    scores, first = jnp.full((2, 3), 0.5), jnp.array([1, 1])
    later = jnp.zeros((2, 3), bool)
    targets, weights = darknet.class_targets(
        scores, first, later, jnp.array([1.0, 4.0, 1.0]), 0.5, own_score=jnp.array([0.25, 0.0])
    )
    np.testing.assert_array_equal(targets, [[0, 0.25, 0], [0, 1, 0]])
    np.testing.assert_array_equal(weights, [[1, 4, 1], [1, 2, 1]])


def test_rare_classes_count_more_up_to_a_bound():
    np.testing.assert_array_equal(darknet.class_multipliers((10, 40, 0, 20), 30), [4, 1, 30, 2])
    assert darknet.class_multipliers((), 5.0) is None


def test_a_given_slope_is_the_derivative_and_the_value_stays():
    slope = jnp.array([[2.0, -3.0]])
    value, gradient = jax.value_and_grad(
        lambda x: darknet.with_slope((x**3).sum(-1), x, slope).sum()
    )(jnp.array([[1.0, 2.0]]))
    assert value == 9
    np.testing.assert_array_equal(gradient, slope)


# ---- A whole head on random outputs. ----

ANCHORS = ((3, 4), (6, 7), (9, 14), (20, 20), (34, 42), (86, 80))  # width, height px
CANVAS, SHAPE = (96, 128), (6, 8)
UNIT = np.array([128, 96])
V4 = dict(scale_x_y=1.05, iou_loss="ciou", iou_normalizer=0.07, ignore_thresh=0.7)
HEADS = {
    "yolov3": dict(mask=(0, 1, 2), iou_normalizer=0.75),
    "mse": dict(scale_x_y=1.2, iou_thresh=0.2),
    "yolov4": dict(**V4, iou_thresh=0.213, max_delta=5.0),
    "yolov4_tiny": V4,
    "giou": dict(iou_loss="giou", iou_thresh=0.1, iou_thresh_kind="giou", obj_normalizer=0.4),
    "new_coords": dict(**V4 | dict(scale_x_y=2.0), new_coords=True, iou_thresh=0.2, max_delta=2.0),
    "new_coords_mse": dict(
        new_coords=True, scale_x_y=2.0, label_smooth_eps=0.1, truth_thresh=0.6, ignore_thresh=0.3
    ),
    "counters": dict(
        counters_per_class=(10, 200, 50), cls_normalizer=0.5, iou_thresh=0.2, max_delta=3.0
    ),
    "smoothed": dict(label_smooth_eps=0.1, iou_thresh=0.2),
    "focal": dict(focal_loss=True, counters_per_class=(10, 200, 0), max_delta=30.0),
    "objectness_smooth": dict(objectness_smooth=True, ignore_thresh=0.3),
    "predicted": dict(truth_thresh=0.6, ignore_thresh=0.3, iou_loss="diou"),
    "predicted_smooth": dict(
        truth_thresh=0.6,
        objectness_smooth=True,
        counters_per_class=(10, 200, 50),
        iou_thresh=0.2,
        ignore_thresh=0.3,
    ),
}

EVERYDAY = ("yolov4", "new_coords", "predicted_smooth")  # cover every branch but the focal one


def make_head(name):
    return darknet_deltas.Head(ANCHORS, **{"mask": (1, 2, 3), **HEADS[name]})


def outputs_and_objects(head, slots=9, objects=7):
    """Random outputs; those in the cells of objects are close to the objects."""
    rng = np.random.default_rng(SEED)
    centers = rng.uniform(0.05, 0.95, (slots, 2)) * UNIT
    extents = np.array(ANCHORS)[rng.choice(head.mask, slots)] * rng.uniform(0.8, 1.25, (slots, 2))
    # Three objects in one row, two of them of the same class.
    centers[1:3], extents[1:3] = centers[0] + 0.01, extents[0] * [[1.02], [0.97]]
    labels = rng.integers(0, 3, slots, np.int32)
    labels[1], labels[2] = (labels[0] + 1) % 3, labels[0]
    valid = np.arange(slots) < objects
    boxes = np.concatenate([centers - extents / 2, centers + extents / 2], axis=1)
    raw = rng.normal(0, 1, (*SHAPE, 3, 8))
    for center, extent in zip(centers[:objects], extents):
        place = center / UNIT * SHAPE[::-1]
        column, row = place.astype(int)
        sigmoids = np.clip(place - [column, row], 0.05, 0.95)
        for a, number in enumerate(head.mask):
            near = [*np.log(sigmoids / (1 - sigmoids)), *np.log(extent / ANCHORS[number])]
            raw[row, column, a, :4] = near + rng.normal(0, 0.2, 4)
            if head.new_coords:  # values whose logistic decodes to the same
                values = [*(sigmoids + (head.scale_x_y - 1) / 2) / head.scale_x_y]
                values += [*np.sqrt(extent / ANCHORS[number] / 4)]
                values = np.clip(values + rng.normal(0, 0.02, 4), 0.05, 0.95)
                raw[row, column, a, :4] = np.log(values / (1 - values))
    if head.new_coords:
        raw = darknet_deltas.sigmoid(raw)
    return np.float32(raw), np.float32(boxes * valid[:, None]), labels, valid


def head_program(head):
    """(raw [Hl, Wl, A, 5 + C], boxes, labels, valid) -> (sum of each term, gradient by raw)."""
    stride = 16
    cell = anchors_lib.sized_anchors([ANCHORS[number] for number in head.mask], stride)
    anchors = anchors_lib.grid_anchors(cell, stride, SHAPE)

    def terms(raw, boxes, labels, valid):
        rows = raw.reshape(len(anchors), -1)
        decoded = heads.boxes(head, raw[None], CANVAS).reshape(-1, 4)
        scores = heads.probabilities(head, rows)[1]
        learned = jax.lax.stop_gradient(
            assign.learn(head, decoded, scores, SHAPE, CANVAS, boxes, labels, valid)
        )
        found = darknet.head_terms(
            head, rows, decoded, anchors, SHAPE, CANVAS, learned, boxes, labels
        )
        sums = [term.sum() for term in found]
        return sum(sums), sums

    @tiny.jit
    def compute(raw, *objects):
        (_, sums), gradient = jax.value_and_grad(terms, has_aux=True)(raw, *objects)
        return sums, gradient

    return compute


@pytest.mark.parametrize(
    "name",
    [
        *EVERYDAY,
        *(pytest.param(name, marks=pytest.mark.slow) for name in HEADS if name not in EVERYDAY),
    ],
)
def test_the_descent_of_a_head_is_what_darknet_writes(name):
    head = make_head(name)
    raw, boxes, labels, valid = outputs_and_objects(head)
    compute = head_program(head)
    sums, gradient = compute(raw, boxes, labels, valid)
    corners = boxes[valid].reshape(-1, 2, 2).astype(np.float64)
    truths = np.concatenate([corners.mean(1) / UNIT, (corners[:, 1] - corners[:, 0]) / UNIT], 1)
    found = [*map(tuple, truths)], [*map(int, labels[valid])]
    expected = darknet_deltas.head_deltas(head, raw, *found, CANVAS)
    for part in (slice(0, 4), slice(4, 5), slice(5, 8)):
        wanted = expected[..., part]
        assert np.any(wanted > 0) and np.any(wanted < 0)
        # Float32 against float64; decoding and encoding again loses two digits.
        np.testing.assert_allclose(
            -gradient[..., part], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max()
        )
    assert np.isfinite(sums).all() and min(sums) > 0
    # Without objects, everything is background.
    sums, gradient = compute(raw, boxes * 0, labels, valid & False)
    assert sums[0] == sums[2] == 0 and sums[1] > 0
    objectness = raw[..., 4] if head.new_coords else darknet_deltas.sigmoid(raw[..., 4])
    background = -head.obj_normalizer * objectness
    np.testing.assert_allclose(-gradient[..., 4], background, rtol=1e-5)
    assert not gradient[..., :4].any() and not gradient[..., 5:].any()


def test_values_of_a_head_by_hand():
    """One object, one row: the terms of yolov3.cfg, computed by hand."""
    head = make_head("yolov3")._replace(iou_normalizer=0.5, obj_normalizer=2.0)
    raw = np.zeros((*SHAPE, 3, 8), np.float32)  # scores 1/2; boxes are anchors
    raw[..., 5:] = -3.0  # no class is likely, so no background is ignored
    raw[2, 3, 1] = [0, 0, 0.1, -0.1, 1.0, -1.0, 0.5, 2.0]
    box = np.float32([[52.0, 38.0, 58.0, 45.0]])  # anchor 1 around (55, 41.5) in cell (2, 3)
    sums, _ = head_program(head)(raw, box, np.array([2]), np.array([True]))
    place = np.array([55 / 16 - 3, 41.5 / 16 - 2])
    xy = -(place * np.log(0.5) + (1 - place) * np.log(0.5)).sum()
    wh = 0.5 * (0.1**2 + 0.1**2)
    assert sums[0] == pytest.approx(0.5 * (2 - 42 / (128 * 96)) * (xy + wh), rel=1e-5)
    sigmoid = darknet_deltas.sigmoid
    others = (6 * 8 * 3 - 1) * -np.log(0.5)
    assert sums[1] == pytest.approx(2 * (others - np.log(sigmoid(1.0))), rel=1e-5)
    assert sums[2] == pytest.approx(
        -np.log([sigmoid(1), sigmoid(-0.5), sigmoid(2)]).sum(), rel=1e-5
    )

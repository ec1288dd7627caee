"""Prime sample attention: weights of ISR-P and CARL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import cross_entropy, focal, pisa, regression
from detlab.ops import boxes as boxes_lib
from detlab.ops import coders

SEED = 0
FORMS = ("sigmoid_agnostic", "softmax_agnostic", "softmax_per_class")


def in_images(arrays, rows_of_first):
    """Rows of two images as [2, P, ...], padded with rows that are not positive, and the mask.

    A unit case lists its positives image by image, then the background, which belongs to none.
    """
    count = max(rows_of_first, len(arrays[0]) - rows_of_first)

    def split(x):
        first, second = x[:rows_of_first], x[rows_of_first:]
        return np.stack([np.resize(x, (count, *x.shape[1:])) for x in (first, second)])

    lengths = np.array([rows_of_first, len(arrays[0]) - rows_of_first])
    return [split(x) for x in arrays], np.arange(count) < lengths[:, None]


def of_own_class(values, labels, num_classes):
    """[P, 4] of [P, 4] or [P, 4 C]: the offsets of the row's class."""
    if values.shape[1] == 4:
        return values
    rows = jnp.arange(len(values))
    return values.reshape(len(values), num_classes, 4)[rows, jnp.minimum(labels, num_classes - 1)]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_weights_of_isr_p_equal_the_reference(unit_cases, form, k):
    case, arrays = unit_cases("box_losses")[f"isr_p_{form}_k{k}"]
    args, labels = case["args"], arrays["labels"]
    count, classes = len(arrays["gt_inds"]), args["num_class"]

    @tiny.jit
    def weights(score, box_pred, box_aim, rois, labels, matched, positive):
        if form.startswith("sigmoid"):
            losses = focal.sigmoid_focal(score, jax.nn.one_hot(labels, classes)).sum(-1)
        else:
            losses = cross_entropy.softmax_cross_entropy(score, labels)
        boxes, aims = (
            coders.decode_deltas(rois, x, stds=args["stds"]) for x in (box_pred, box_aim)
        )
        ious = boxes_lib.iou(boxes, aims)
        return pisa.isr_weights(ious, matched, labels, positive, losses, k, args["bias"])

    assert (labels[:count] < classes).all() and (labels[count:] == classes).all()
    box_pred = np.asarray(of_own_class(arrays["box_pred"], labels, classes))
    rows = (arrays["score"], box_pred, arrays["box_aim"], arrays["rois"][:, -4:], labels)
    first = int(case["arrays"]["gt_inds"]["meaning"].split("first ")[1].split()[0])
    images, there = in_images([*(x[:count] for x in rows), arrays["gt_inds"]], first)
    found = np.asarray(weights(*images, there))
    expected = arrays["new_label_weights"]
    assert len(found[there]) == count > 0
    np.testing.assert_allclose(found[there], expected[:count], **case["tolerance"])
    np.testing.assert_array_equal(found[~there], 1.0)
    np.testing.assert_array_equal(expected[count:], 1.0)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_loss_of_carl_and_its_gradients_equal_the_reference(unit_cases, form, k):
    case, arrays = unit_cases("box_losses")[f"carl_{form}_k{k}"]
    args, labels = case["args"], arrays["labels"]
    classes = args["num_class"]
    positive = (labels < classes)[None]
    own = np.minimum(labels, classes - 1)[:, None]

    def loss(score, box_pred):
        scores = jax.nn.sigmoid(score) if args["sigmoid"] else jax.nn.softmax(score)
        scores = jnp.take_along_axis(scores, own, axis=1)[:, 0]
        weights = pisa.carl_weights(scores[None], positive, k, args["bias"])
        deltas = of_own_class(box_pred, labels, classes)
        terms = regression.smooth_l1(deltas, arrays["box_aim"])
        return (weights[0, :, None] * terms).sum() / args["avg_factor"]

    step = tiny.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, gradients = step(arrays["score"], arrays["box_pred"])
    np.testing.assert_allclose(value, arrays["loss"][0], **case["tolerance"])
    for name, gradient in zip(("score", "box_pred"), gradients, strict=True):
        gradient = arrays["cot_loss"] * gradient
        np.testing.assert_allclose(gradient, arrays[f"grad_{name}"], **case["tolerance"])


def slow_isr_weights(ious, matched, labels, positive, losses, k, bias):
    """ISR-P with loops over objects and classes, in float64."""
    rows = [tuple(x) for x in np.argwhere(positive)]
    in_object, rank = {}, {}
    for image in range(len(ious)):
        for slot in set(matched[image]):
            group = [x for x in rows if x[0] == image and matched[x] == slot]
            for r, row in enumerate(sorted(group, key=lambda x: -ious[x])):
                in_object[row] = r
    for label in set(labels[positive]):
        group = [x for x in rows if labels[x] == label]
        for r, row in enumerate(sorted(group, key=lambda x: (in_object[x], -ious[x]))):
            rank[row] = r
    largest = max(rank.values()) + 1
    weights = np.ones(ious.shape)
    for row in rows:
        weights[row] = ((1 - bias) * (largest - rank[row]) / largest + bias) ** k
    weights[positive] *= losses[positive].sum() / (weights * losses)[positive].sum()
    return weights


def random_rows(images=3, rows=40, slots=4, classes=3):
    rng = np.random.default_rng(SEED)
    of_slots = rng.integers(0, classes, (images, slots))
    matched = rng.integers(0, slots, (images, rows), np.int32)
    labels = np.take_along_axis(of_slots, matched, 1).astype(np.int32)
    ious, losses = rng.uniform(size=(2, images, rows)).astype(np.float32)
    return ious, matched, labels, rng.uniform(size=(images, rows)) < 0.6, losses


@functools.cache
def weights_program():
    return tiny.jit(pisa.isr_weights)


def test_weights_of_isr_p_equal_loops_over_objects_and_classes():
    rows = random_rows()
    found = weights_program()(*rows, 2.0, 0.1)
    np.testing.assert_allclose(found, slow_isr_weights(*rows, 2.0, 0.1), rtol=1e-5)


def test_the_sum_of_the_losses_stays():
    ious, matched, labels, positive, losses = random_rows()
    weights = weights_program()(ious, matched, labels, positive, losses, 2.0, 0.1)
    np.testing.assert_allclose((weights * losses).sum(), losses.sum(), rtol=1e-5)


def test_slot_0_of_one_image_is_another_object_than_slot_0_of_the_next():
    """Two objects of a class with two positives each; their best ones share the first ranks."""
    ious = np.float32([[0.9, 0.8], [0.7, 0.6]])
    same, positive, losses = np.zeros((2, 2), np.int32), np.ones((2, 2), bool), np.ones((2, 2))
    weights = weights_program()(ious, same, same, positive, np.float32(losses), 1.0, 0.0)
    np.testing.assert_allclose(weights, np.array([[4, 2], [3, 1]]) * 4 / 10, rtol=1e-6)


def test_of_equal_overlaps_the_last_row_is_first():
    zeros, positive = np.zeros((1, 3), np.int32), np.ones((1, 3), bool)
    ious, losses = np.float32([[0.5, 0.0, 0.0]]), np.ones((1, 3), np.float32)
    weights = weights_program()(ious, zeros, zeros, positive, losses, 1.0, 0.0)
    np.testing.assert_allclose(weights, [[3 / 2, 1 / 2, 1]], rtol=1e-6)


def test_rows_that_are_not_positive_change_nothing():
    ious, matched, labels, positive, losses = random_rows()
    expected = weights_program()(ious, matched, labels, positive, losses, 2.0, 0.1)
    others = (np.where(positive, x, y) for x, y in ((ious, 9), (matched, 0), (labels, 1)))
    losses = np.where(positive, losses, np.float32(5))
    others = [x.astype(y.dtype) for x, y in zip(others, (ious, matched, labels), strict=True)]
    found = weights_program()(*others, positive, losses, 2.0, 0.1)
    np.testing.assert_array_equal(found, expected)


def test_without_positives_weights_and_gradients_are_finite():
    ious, matched, labels, positive, losses = random_rows()
    none = np.zeros_like(positive)
    found = weights_program()(ious, matched, labels, none, losses, 2.0, 0.0)
    np.testing.assert_array_equal(found, 1.0)
    # Positives without any loss: the sum that scales the weights is 0.
    found = weights_program()(ious, matched, labels, positive, 0 * losses, 2.0, 0.0)
    assert np.isfinite(found).all()

    def carl(scores, positive, k):
        return (pisa.carl_weights(scores, positive, k, 0.0) * losses).sum()

    carl = tiny.jit(jax.value_and_grad(carl))
    for value, gradient in (carl(ious, none, 0.5), carl(0 * ious, positive, 1.0)):
        assert value == 0 and np.isfinite(gradient).all()
    assert not np.any(carl(ious, none, 0.5)[1])


def test_carl_raises_the_score_of_a_well_localized_sample_and_lowers_the_others():
    positive = np.ones((1, 3), bool)
    losses = np.float32([[0.1, 1.0, 2.0]])

    def loss(scores):
        return (pisa.carl_weights(scores, positive) * losses).sum()

    gradient = jax.grad(loss)(np.full((1, 3), 0.5, np.float32))[0]
    assert gradient[0] < 0 < gradient[2]
    np.testing.assert_allclose(gradient.sum(), 0.0, atol=1e-6)  # only ratios of factors matter

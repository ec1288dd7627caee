"""Overlap losses of boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import iou as iou_losses
from detlab.ops import boxes as boxes_lib

LOSSES = {
    "iou_log": functools.partial(iou_losses.iou_loss, mode="log"),
    "iou_linear": functools.partial(iou_losses.iou_loss, mode="linear"),
    "iou_square": functools.partial(iou_losses.iou_loss, mode="square"),
    "giou": iou_losses.giou_loss,
    "diou": iou_losses.diou_loss,
    "ciou": iou_losses.ciou_loss,
    "bounded_iou": iou_losses.bounded_iou_loss,
}
SEED = 0
ROWS = 22  # of the largest unit case


def random_boxes(count, seed=SEED):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, 30, (count, 2)), rng.uniform(10, 60, (count, 2))
    return np.concatenate([low, low + size], axis=-1).astype(np.float32)


@functools.cache
def program(name):
    """Jitted (pred, target, cotangent) -> (loss, gradient of pred)."""

    @tiny.jit
    def value_and_vjp(pred, target, cotangent):
        loss, vjp = jax.vjp(lambda pred: LOSSES[name](pred, target), pred)
        return loss, vjp(cotangent)[0]

    return value_and_vjp


def value_and_vjp(name, *arrays):
    """`program(name)` on rows padded with zeros to one length, so that all tests share it."""
    count = len(arrays[0])
    padded = (np.pad(x, [(0, ROWS - count)] + [(0, 0)] * (x.ndim - 1)) for x in arrays)
    loss, gradient = program(name)(*padded)
    assert np.isfinite(loss).all()
    np.testing.assert_array_equal(gradient[count:], 0.0)
    return loss[:count], gradient[:count]


@pytest.mark.parametrize("form", ["plain", "hard", "ties", "avg"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_the_reference(unit_cases, name, form):
    case, arrays = unit_cases("box_losses")[f"{name}_{form}"]
    cotangent = arrays["cot_loss"]
    if form == "avg":  # the loss is a weighted sum
        weight = arrays["weight"] / np.float32(case["args"]["avg_factor"])
        cotangent = cotangent * weight
    loss, gradient = value_and_vjp(name, arrays["pred"], arrays["target"], cotangent)
    if form == "avg":
        loss = (loss * weight).sum()
    np.testing.assert_allclose(loss, arrays["loss"], **case["tolerance"])
    np.testing.assert_allclose(gradient, arrays["grad_pred"], **case["tolerance"])


def test_losses_by_hand():
    pred, target = jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([0.0, 0.0, 10.0, 20.0])
    assert iou_losses.iou_loss(pred, target, "linear") == 0.5
    assert iou_losses.iou_loss(pred, target, "square") == 0.75
    np.testing.assert_allclose(iou_losses.iou_loss(pred, target, "log"), np.log(2), rtol=1e-6)
    assert iou_losses.giou_loss(pred, target) == 0.5
    np.testing.assert_allclose(iou_losses.diou_loss(pred, target), 0.5 + 25 / 500, rtol=1e-6)
    # centre y: 1 - (20 - 10) / (20 + 10); height: 1 - 10 / 20; less half of beta
    np.testing.assert_allclose(
        iou_losses.bounded_iou_loss(pred, target), [0, 2 / 3 - 0.1, 0, 0.5 - 0.1], atol=1e-4
    )


@pytest.mark.parametrize("name", LOSSES)
def test_identical_boxes_cost_nothing_and_have_a_finite_gradient(name):
    boxes = random_boxes(20)
    shape = (20, 4) if name == "bounded_iou" else (20,)
    loss, gradient = value_and_vjp(name, boxes, boxes, np.ones(shape, np.float32))
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_masked_rows_change_no_gradient(name):
    """Zero padding and real boxes in the masked rows give the same gradients, and no NaN."""
    pred, target = random_boxes(ROWS), random_boxes(ROWS, SEED + 1)
    mask = np.arange(ROWS) < 6
    cotangent = np.broadcast_to(mask[:, None], (ROWS, 4)) if name == "bounded_iou" else mask
    cotangent = cotangent.astype(np.float32)
    _, real = program(name)(pred, target, cotangent)
    _, padded = program(name)(pred * mask[:, None], target * mask[:, None], cotangent)
    np.testing.assert_array_equal(padded, real)
    np.testing.assert_array_equal(padded[6:], 0.0)
    assert np.any(padded[:6] != 0)


def test_giou_pulls_boxes_together_that_do_not_meet_and_iou_does_not():
    pred, target = jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([30.0, 0.0, 40.0, 10.0])
    np.testing.assert_array_equal(jax.grad(iou_losses.iou_loss)(pred, target), 0.0)
    assert jax.grad(iou_losses.giou_loss)(pred, target)[2] < 0  # moving x2 right lowers the loss


def test_ciou_treats_alpha_as_a_constant():
    pred, target = jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([0.0, 0.0, 10.0, 8.0])

    def v(pred):
        ratio = jnp.arctan((pred[2] - pred[0]) / (pred[3] - pred[1]))
        return 4 / np.pi**2 * (np.arctan(10 / 8) - ratio) ** 2

    alpha = v(pred) / (1 - boxes_lib.iou(pred, target) + v(pred))
    expected = jax.grad(iou_losses.diou_loss)(pred, target) + alpha * jax.grad(v)(pred)
    np.testing.assert_allclose(
        jax.grad(iou_losses.ciou_loss)(pred, target), expected, rtol=1e-5, atol=1e-7
    )


def test_an_unknown_mode_raises():
    with pytest.raises(ValueError, match="'cubic'"):
        iou_losses.iou_loss(jnp.zeros(4), jnp.zeros(4), "cubic")

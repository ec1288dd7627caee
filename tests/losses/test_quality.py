"""Losses of scores that predict the quality of boxes: recorded cases, formulas and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import focal, quality

LOSSES = {"quality": quality.quality_focal, "varifocal": quality.varifocal}


def reduced(case, arrays, values, form):
    """The value of a recorded case from an unreduced loss."""
    if form == "none":
        return values
    if form == "mean":
        return values.mean()
    return (values * arrays["weight"]).sum() / case["args"]["avg_factor"]


def check(case, arrays, loss):
    value, gradient = jax.vjp(loss, jnp.array(arrays["pred"]))
    np.testing.assert_allclose(value, arrays["loss"], **case["tolerance"])
    (found,) = gradient(jnp.array(arrays["cot_loss"]))
    np.testing.assert_allclose(found, arrays["grad_pred"], **case["tolerance"])


@pytest.mark.parametrize("beta", [1.5, 2.0])
@pytest.mark.parametrize("form", ["none", "avg", "mean"])
def test_quality_focal_equals_the_reference(unit_cases, beta, form):
    case, arrays = unit_cases("losses")[f"quality_focal_{beta}_{form}"]
    one_hot = jax.nn.one_hot(arrays["label"], arrays["pred"].shape[1])  # zeros for the background
    qualities = one_hot * arrays["score"][:, None]

    def loss(logits):
        values = quality.quality_focal(logits, qualities, beta).sum(-1)  # of the classes
        return reduced(case, arrays, values, form)

    check(case, arrays, loss)


@pytest.mark.parametrize("name", ["weighted", "unweighted"])
@pytest.mark.parametrize("form", ["none", "avg", "mean"])
def test_varifocal_equals_the_reference(unit_cases, name, form):
    case, arrays = unit_cases("losses")[f"varifocal_{name}_{form}"]
    options = {key: case["args"][key] for key in ("alpha", "gamma", "iou_weighted")}

    def loss(logits):
        return reduced(case, arrays, quality.varifocal(logits, arrays["target"], **options), form)

    check(case, arrays, loss)


def slow(name, logits, qualities):
    """One score after another, in float64."""
    losses = np.zeros(logits.shape)
    for index, x in np.ndenumerate(logits):
        p, q = 1 / (1 + np.exp(-np.float64(x))), np.float64(qualities[index])
        cross_entropy = -q * np.log(p) - (1 - q) * np.log(1 - p)
        if name == "quality":
            losses[index] = abs(q - p) ** 2 * cross_entropy
        else:
            losses[index] = (q if q > 0 else 0.75 * p**2) * cross_entropy
    return losses


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_slopes_equal_a_slow_loop(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20, 5))
    qualities = np.where(rng.uniform(size=logits.shape) < 0.4, rng.uniform(size=logits.shape), 0)
    value_and_slope = tiny.jit(jax.vmap(jax.value_and_grad(LOSSES[name])))
    loss, slope = value_and_slope(np.float32(logits.ravel()), np.float32(qualities.ravel()))
    np.testing.assert_allclose(loss, slow(name, logits, qualities).ravel(), rtol=1e-4, atol=1e-6)
    step = 1e-5
    above, below = (slow(name, logits + s, qualities) for s in (step, -step))
    numeric = (above - below).ravel() / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-4, atol=1e-5)  # float32 exp and log


def test_with_labels_both_are_the_focal_loss():
    """Quality focal without its weights; varifocal for the negatives, as 1 - alpha is 0.75."""
    logits = np.float32(np.random.default_rng(0).normal(0, 3, 40))
    labels = np.float32(np.arange(40) % 3 == 0)
    expected = focal.sigmoid_focal(logits, labels, alpha=0.5)
    np.testing.assert_allclose(
        quality.quality_focal(logits, labels), 2 * expected, rtol=1e-4, atol=1e-7
    )
    nothing = np.zeros(40, np.float32)
    expected = focal.sigmoid_focal(logits, nothing)
    np.testing.assert_allclose(quality.varifocal(logits, nothing), expected, rtol=1e-4, atol=1e-7)


def test_both_are_least_near_the_quality_and_quality_focal_is_flat_there():
    logits = jnp.linspace(-6.0, 6.0, 1201)
    for loss in LOSSES.values():
        best = jax.nn.sigmoid(logits[jnp.argmin(loss(logits, jnp.float32(0.7)))])
        np.testing.assert_allclose(best, 0.7, atol=5e-3)
    there = jnp.log(jnp.float32(0.5 / 0.5))
    for beta in (1.0, 1.5, 2.0):
        slope = jax.grad(functools.partial(quality.quality_focal, beta=beta))
        assert slope(there, jnp.float32(0.5)) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_have_finite_values_and_gradients(name):
    logits = jnp.array([-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4])
    value_and_slope = tiny.jit(jax.vmap(jax.value_and_grad(LOSSES[name]), in_axes=(0, None)))
    for target in (0.0, 0.4, 1.0):
        value, slope = value_and_slope(logits, jnp.float32(target))
        assert np.isfinite(value).all() and np.isfinite(slope).all() and (value >= 0).all()
    low = functools.partial(quality.varifocal, gamma=0.5)
    assert np.isfinite(jax.grad(low)(jnp.float32(-200.0), jnp.float32(0.0)))


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_give_float32_losses(name):
    assert LOSSES[name](jnp.ones(3, jnp.bfloat16), jnp.ones(3)).dtype == jnp.float32

"""Focal loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import focal

SEED = 0


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (1.5, 0.4)])
@pytest.mark.parametrize("form", ["none", "avg", "mean"])
def test_focal_equals_the_reference(unit_cases, gamma, alpha, form):
    case, arrays = unit_cases("losses")[f"focal_{gamma}_{alpha}_{form}"]
    labels = jnp.asarray(arrays["target"])
    num_classes = arrays["pred"].shape[1]
    targets = jax.nn.one_hot(labels, num_classes)  # zeros for the background, C

    def loss(pred):
        values = focal.sigmoid_focal(pred, targets, alpha, gamma)
        if form == "none":
            return values
        if form == "mean":
            return values.mean()
        weight = arrays["weight"].reshape(len(labels), -1)
        return (values * weight).sum() / case["args"]["avg_factor"]

    @tiny.jit
    def value_and_vjp(pred, cotangent):
        value, vjp = jax.vjp(loss, pred)
        return value, vjp(cotangent)[0]

    value, gradient = value_and_vjp(arrays["pred"], arrays["cot_loss"])
    np.testing.assert_allclose(value, arrays["loss"], **case["tolerance"])
    np.testing.assert_allclose(gradient, arrays["grad_pred"], **case["tolerance"])


def test_focal_by_hand():
    # p = 0.5 everywhere: alpha_t * 0.25 * ln 2
    loss = focal.sigmoid_focal(jnp.zeros(2), jnp.array([1.0, 0.0]))
    expected = [0.25 * 0.25 * np.log(2), 0.75 * 0.25 * np.log(2)]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_gamma_zero_is_weighted_cross_entropy():
    rng = np.random.default_rng(SEED)
    logits = rng.normal(0, 3, (50, 7))
    targets = (rng.uniform(size=(50, 7)) < 0.3).astype(np.float32)
    p = 1 / (1 + np.exp(-logits))
    expected = -0.25 * targets * np.log(p) - 0.75 * (1 - targets) * np.log(1 - p)
    loss = tiny.jit(focal.sigmoid_focal)(logits, targets, 0.25, 0.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)  # float32 exp and log


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_have_finite_values_and_gradients(gamma):
    logits = jnp.array([-1e4, -200.0, -90.0, -30.0, 0.0, 30.0, 90.0, 200.0, 1e4])
    value_and_grad = tiny.jit(
        jax.vmap(jax.value_and_grad(lambda x, t: focal.sigmoid_focal(x, t, 0.25, gamma)))
    )
    for target in (0.0, 1.0):
        loss, gradient = value_and_grad(logits, jnp.full_like(logits, target))
        assert np.isfinite(loss).all() and np.isfinite(gradient).all()
        assert (loss >= 0).all()
        # A completely wrong logit costs alpha_t times its size, with slope alpha_t.
        wrong = 0 if target else -1
        alpha_t = 0.25 if target else 0.75
        np.testing.assert_allclose(loss[wrong], alpha_t * 1e4, rtol=1e-6)
        np.testing.assert_allclose(abs(gradient[wrong]), alpha_t, rtol=1e-6)


def test_gradient_equals_finite_differences():
    x = np.linspace(-8, 8, 41)  # includes 0, where the two branches of ln p_t meet
    gradient = tiny.jit(jax.vmap(jax.grad(lambda x, t: focal.sigmoid_focal(x, t, 0.25, 1.5))))

    def loss(x, target):  # float64 NumPy, straight from the paper
        pt = 1 / (1 + np.exp(-x if target else x))
        return -(0.25 if target else 0.75) * (1 - pt) ** 1.5 * np.log(pt)

    for target in (0, 1):
        numeric = (loss(x + 1e-5, target) - loss(x - 1e-5, target)) / 2e-5
        values = gradient(x.astype(np.float32), np.full(41, target, np.float32))
        np.testing.assert_allclose(values, numeric, rtol=1e-5, atol=1e-7)  # float32 exp and log


def test_bfloat16_logits_give_float32_losses():
    loss = focal.sigmoid_focal(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3)))
    assert loss.dtype == jnp.float32

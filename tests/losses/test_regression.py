"""L1 and smooth L1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import regression


@pytest.mark.parametrize("beta", ["1.00", "0.11", "0.50"])
@pytest.mark.parametrize("form", ["none", "avg", "mean"])
def test_smooth_l1_equals_the_reference(unit_cases, beta, form):
    case, arrays = unit_cases("box_losses")[f"smooth_l1_{beta}_{form}"]

    def loss(pred):
        values = regression.smooth_l1(pred, arrays["target"], case["args"]["beta"])
        if form == "none":
            return values
        if form == "mean":
            return values.mean()
        return (values * arrays["weight"]).sum() / case["args"]["avg_factor"]

    @tiny.jit
    def value_and_vjp(pred, cotangent):
        value, vjp = jax.vjp(loss, pred)
        return value, vjp(cotangent)[0]

    value, gradient = value_and_vjp(arrays["pred"], arrays["cot_loss"])
    np.testing.assert_allclose(value, arrays["loss"], **case["tolerance"])
    np.testing.assert_allclose(gradient, arrays["grad_pred"], **case["tolerance"])


def test_smooth_l1_by_hand():
    pred = jnp.array([0.0, 0.25, -0.5, 2.0])
    np.testing.assert_allclose(
        regression.smooth_l1(pred, 0.0, 0.5), [0.0, 0.0625, 0.25, 1.75], rtol=1e-6
    )


def test_smooth_l1_without_a_parabola_is_l1():
    pred = jnp.array([0.0, 0.25, -0.5])
    value, gradient = jax.value_and_grad(lambda x: regression.smooth_l1(x, 0.0, 0.0).sum())(pred)
    np.testing.assert_array_equal(value, 0.75)
    np.testing.assert_array_equal(gradient, [0, 1, -1])


def test_smooth_l1_tends_to_l1_for_a_small_beta():
    pred = jnp.linspace(-3, 3, 13)
    np.testing.assert_allclose(
        regression.smooth_l1(pred, 0.1, 1e-5), regression.l1(pred, 0.1), atol=1e-5
    )


def test_beta_may_be_traced():
    loss = tiny.jit(regression.smooth_l1)(jnp.array([0.25, 2.0]), jnp.zeros(2), jnp.float32(0.5))
    np.testing.assert_allclose(loss, [0.0625, 1.75], rtol=1e-6)


@pytest.mark.parametrize("loss", [regression.l1, regression.smooth_l1])
def test_gradient_is_zero_where_pred_equals_target(loss):
    assert jax.grad(loss)(1.5, 1.5) == 0.0

"""L1, smooth L1 and balanced L1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import regression

CURVES = {
    **dict.fromkeys(("smooth_l1_1.00", "smooth_l1_0.11", "smooth_l1_0.50"), regression.smooth_l1),
    **dict.fromkeys(("balanced_l1_1.0", "balanced_l1_0.5"), regression.balanced_l1),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("form", ["none", "avg", "mean"])
def test_curves_equal_the_reference(unit_cases, curve, form):
    case, arrays = unit_cases("box_losses")[f"{curve}_{form}"]
    options = {k: v for k, v in case["args"].items() if k in ("alpha", "gamma", "beta")}

    def loss(pred):
        values = CURVES[curve](pred, arrays["target"], **options)
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


def test_balanced_l1_by_hand():
    """alpha 1, gamma ln 2, so b = 1: (d + 1) ln(d + 1) - d, then ln 2 (d + 1) - 1."""
    pred = jnp.array([0.0, -0.5, 1.0, 3.0])
    expected = [0, 1.5 * np.log(1.5) - 0.5, 2 * np.log(2) - 1, 4 * np.log(2) - 1]
    found = regression.balanced_l1(pred, 0.0, 1.0, float(np.log(2)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_balanced_l1_has_the_gradient_of_the_paper():
    """alpha ln(b d + 1) for inliers, gamma for outliers; the loss has no step."""
    gradient = jax.vmap(jax.grad(regression.balanced_l1), (0, None))
    b = np.expm1(1.5 / 0.5)
    d = np.float32([0.01, 0.3, 0.999, 1.0, 5.0])
    np.testing.assert_allclose(
        gradient(d, 0.0), np.minimum(0.5 * np.log(b * d + 1), 1.5), rtol=1e-5
    )
    for beta in (0.11, 1.0):
        below, above = regression.balanced_l1(beta * np.float32([1 - 1e-6, 1]), 0.0, beta=beta)
        np.testing.assert_allclose(below, above, rtol=1e-4)


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


@pytest.mark.parametrize("loss", [regression.l1, regression.smooth_l1, regression.balanced_l1])
def test_gradient_is_zero_where_pred_equals_target(loss):
    assert jax.grad(loss)(1.5, 1.5) == 0.0

"""The distribution focal loss: recorded cases, a slow loop, its minimum and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import cross_entropy, distribution
from detlab.ops import coders


@pytest.mark.parametrize("form", ["none", "avg", "mean"])
def test_values_and_gradients_equal_the_reference(unit_cases, form):
    case, arrays = unit_cases("losses")[f"distribution_focal_{form}"]

    def loss(logits):
        values = distribution.distribution_focal(logits, arrays["target"])
        if form == "none":
            return values
        if form == "mean":
            return values.mean()
        return (values * arrays["weight"]).sum() / case["args"]["avg_factor"]

    value, gradient = jax.vjp(loss, jnp.array(arrays["pred"]))
    np.testing.assert_allclose(value, arrays["loss"], **case["tolerance"])
    (found,) = gradient(jnp.array(arrays["cot_loss"]))
    np.testing.assert_allclose(found, arrays["grad_pred"], **case["tolerance"])


def test_loss_equals_a_slow_loop():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (4, 5, 9)), rng.uniform(0, 7.9, (4, 5))
    targets[0] = [0, 1, 2.5, 7, 7.9]
    found = tiny.jit(distribution.distribution_focal)(np.float32(logits), np.float32(targets))
    for index, y in np.ndenumerate(targets):
        p = np.exp(logits[index]) / np.exp(logits[index]).sum()
        i = int(y)
        expected = -(i + 1 - y) * np.log(p[i]) - (y - i) * np.log(p[i + 1])
        np.testing.assert_allclose(found[index], expected, rtol=1e-4)


def test_a_whole_number_is_a_label():
    logits = np.float32(np.random.default_rng(0).normal(0, 3, (6, 5)))
    labels = np.int32([0, 1, 2, 3, 3, 0])
    found = distribution.distribution_focal(logits, np.float32(labels))
    np.testing.assert_allclose(found, cross_entropy.softmax_cross_entropy(logits, labels))


def test_the_best_distribution_has_the_target_as_its_mean():
    for target in (0.0, 2.25, 6.5):
        below = int(target)
        p = np.full(8, 1e-9)
        p[below : below + 2] += below + 1 - target, target - below
        slope = jax.grad(distribution.distribution_focal)(jnp.log(p), jnp.float32(target))
        np.testing.assert_allclose(slope, 0, atol=1e-6)
        np.testing.assert_allclose(coders.decode_distribution(jnp.log(p)), target, atol=1e-5)


def test_extreme_logits_have_finite_values_and_gradients():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 1e4]])
    for target in (0.0, 0.5, 1.9):
        values, gradient = jax.vjp(
            lambda x, y=target: distribution.distribution_focal(x, jnp.full(3, y)), logits
        )
        (found,) = gradient(jnp.ones(3))
        assert np.isfinite(values).all() and np.isfinite(found).all()


def test_bfloat16_logits_give_float32_losses():
    loss = distribution.distribution_focal(jnp.ones((2, 4), jnp.bfloat16), jnp.ones(2))
    assert loss.dtype == jnp.float32

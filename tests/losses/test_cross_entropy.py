"""Cross entropy of sigmoid and softmax scores."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from detlab.losses import cross_entropy


def test_loss_and_gradient_equal_the_formula_in_float64():
    x = np.linspace(-8, 8, 33)
    value_and_grad = tiny.jit(jax.vmap(jax.value_and_grad(cross_entropy.sigmoid_cross_entropy)))
    for target in (0.0, 0.3, 1.0):
        p = 1 / (1 + np.exp(-x))
        loss, gradient = value_and_grad(x.astype(np.float32), np.full(33, target, np.float32))
        expected = -target * np.log(p) - (1 - target) * np.log(1 - p)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)  # float32 exp and log
        np.testing.assert_allclose(gradient, p - target, rtol=1e-5, atol=1e-7)


def test_extreme_logits_have_finite_values_and_gradients():
    x = jnp.array([-1e4, -100.0, 100.0, 1e4])
    value_and_grad = jax.vmap(
        jax.value_and_grad(cross_entropy.sigmoid_cross_entropy), in_axes=(0, None)
    )
    loss, gradient = value_and_grad(x, 1.0)
    np.testing.assert_allclose(loss, [1e4, 100, 0, 0], atol=1e-30)
    np.testing.assert_allclose(gradient, [-1, -1, 0, 0], atol=1e-30)


def test_bfloat16_logits_give_float32_losses():
    loss = cross_entropy.sigmoid_cross_entropy(jnp.ones(3, jnp.bfloat16), jnp.ones(3))
    assert loss.dtype == jnp.float32


def test_softmax_loss_and_gradient_equal_the_formula_in_float64():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(0, 3, (6, 5)), rng.integers(0, 5, 6)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    value_and_grad = jax.vmap(jax.value_and_grad(cross_entropy.softmax_cross_entropy))
    loss, gradient = value_and_grad(x.astype(np.float32), labels)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(6), labels]), rtol=1e-5)
    np.testing.assert_allclose(gradient, p - np.eye(5)[labels], rtol=1e-5, atol=1e-6)
    far = jnp.array([1e4, 0.0, -1e4])
    assert cross_entropy.softmax_cross_entropy(far, jnp.array(2)) == 2e4
    assert cross_entropy.softmax_cross_entropy(far, jnp.array(0)) == 0
    half = cross_entropy.softmax_cross_entropy(jnp.ones((2, 4), jnp.bfloat16), jnp.array([0, 3]))
    assert half.dtype == jnp.float32 and half.shape == (2,)

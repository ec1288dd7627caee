"""Scaled gradients."""

import jax
import numpy as np

from detlab.ops import gradient


def test_the_value_is_exact_and_the_gradient_a_part():
    x = np.float32([0.1, -3.7, 1e-20, 1e20])
    value, vjp = jax.vjp(lambda x: gradient.scale(x, 0.1), x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_allclose(vjp(x)[0], 0.1 * x, rtol=1e-6)


def test_a_known_product_is_returned_as_it_is_with_the_gradients_of_the_product():
    rng = np.random.default_rng(0)
    x, kernel = np.float32(rng.normal(size=(2, 3, 4))), np.float32(rng.normal(size=(4, 5)))
    known = np.float32(rng.normal(size=(2, 3, 5)))
    value, vjp = jax.vjp(gradient.known_product, x, kernel, known)
    np.testing.assert_array_equal(value, known)
    _, plain = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)
    *found, of_known = vjp(known)
    for a, b in zip(found, plain(known), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not of_known.any()

"""Scaled gradients."""

import jax
import numpy as np

from detlab.ops import gradient


def test_the_value_is_exact_and_the_gradient_a_part():
    x = np.float32([0.1, -3.7, 1e-20, 1e20])
    value, vjp = jax.vjp(lambda x: gradient.scale(x, 0.1), x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_allclose(vjp(x)[0], 0.1 * x, rtol=1e-6)

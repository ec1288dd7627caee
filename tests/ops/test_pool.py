"""Max pooling by rows and columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import pool


def slow_pool(x, weights, size):
    """The maxima of one map [H, W], and the gradient of their sum times weights, cell by cell."""
    height, width = x.shape
    half = size // 2
    out, gradient = np.zeros_like(x), np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            top, left = max(i - half, 0), max(j - half, 0)
            window = x[top : i + half + 1, left : j + half + 1]
            row, column = np.unravel_index(window.argmax(), window.shape)  # the first of equals
            out[i, j] = window.max()
            gradient[top + row, left + column] += weights[i, j]
    return out, gradient


@pytest.mark.parametrize("size", [1, 3, 5])
def test_maxima_and_gradients_equal_a_slow_loop_with_many_equal_values(size):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (2, 9, 7, 2)).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)

    @jax.jit
    def run(x):
        out, pullback = jax.vjp(lambda x: pool.max_pool(x, size), x)
        return out, pullback(weights)[0]

    out, gradient = run(x)
    for b in range(2):
        for d in range(2):
            expected = slow_pool(x[b, :, :, d], weights[b, :, :, d], size)
            np.testing.assert_array_equal(out[b, :, :, d], expected[0])
            np.testing.assert_allclose(gradient[b, :, :, d], expected[1], rtol=1e-5, atol=1e-6)


def test_pooling_twice_and_three_times_gives_the_sizes_9_and_13():
    x = jax.random.normal(jax.random.key(0), (1, 15, 11, 3))
    twice = pool.max_pool(pool.max_pool(x, 5), 5)
    np.testing.assert_array_equal(twice, pool.max_pool(x, 9))
    np.testing.assert_array_equal(pool.max_pool(twice, 5), pool.max_pool(x, 13))


def test_a_size_without_a_middle_is_refused():
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"size must be odd and at least 1, not {size}"):
            pool.max_pool(jnp.zeros((1, 4, 4, 1)), size)

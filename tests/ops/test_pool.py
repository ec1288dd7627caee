"""Max pooling by rows and columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import pool


def slow_pool(x, weights, size, stride, before):
    """The maxima of one map [H, W], and the gradient of their sum times weights, cell by cell."""
    out, gradient = np.zeros_like(weights), np.zeros_like(x)
    for i, j in np.ndindex(weights.shape):
        first_row, first_column = i * stride - before, j * stride - before
        top, left = max(first_row, 0), max(first_column, 0)
        window = x[top : first_row + size, left : first_column + size]
        row, column = np.unravel_index(window.argmax(), window.shape)  # the first of equals
        out[i, j] = window.max()
        gradient[top + row, left + column] += weights[i, j]
    return out, gradient


@pytest.mark.parametrize(
    "size, stride, padding",
    [(1, 1, None), (3, 1, None), (5, 1, None), (3, 2, None), (2, 2, (0, 1)), (2, 1, (0, 1))],
)
def test_maxima_and_gradients_equal_a_slow_loop_with_many_equal_values(size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (2, 9, 7, 2)).astype(np.float32)
    before, after = padding or (size // 2, size // 2)
    sides = [(side + before + after - size) // stride + 1 for side in (9, 7)]
    weights = rng.normal(size=(2, *sides, 2)).astype(np.float32)

    @jax.jit
    def run(x):
        out, pullback = jax.vjp(lambda x: pool.max_pool(x, size, stride, padding), x)
        return out, pullback(weights)[0]

    out, gradient = run(x)
    for b in range(2):
        for d in range(2):
            expected = slow_pool(x[b, :, :, d], weights[b, :, :, d], size, stride, before)
            np.testing.assert_array_equal(out[b, :, :, d], expected[0])
            np.testing.assert_allclose(gradient[b, :, :, d], expected[1], rtol=1e-5, atol=1e-6)


def slow_adaptive_pool(x, weights):
    """As `slow_pool`, with windows that cover the map evenly."""
    out, gradient = np.zeros_like(weights), np.zeros_like(x)
    for i, j in np.ndindex(weights.shape):
        (top, left), (bottom, right) = (
            [k * big // small for k, big, small in zip((i, j), x.shape, weights.shape)],
            [-(-(k + 1) * big // small) for k, big, small in zip((i, j), x.shape, weights.shape)],
        )
        window = x[top:bottom, left:right]
        row, column = np.unravel_index(window.argmax(), window.shape)  # the first of equals
        out[i, j] = window.max()
        gradient[top + row, left + column] += weights[i, j]
    return out, gradient


@pytest.mark.parametrize("size", [(3, 3), (4, 5), (9, 7), (1, 2), (5, 7)])
def test_adaptive_maxima_and_gradients_equal_a_slow_loop_with_many_equal_values(size):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (2, 9, 7, 2)).astype(np.float32)
    weights = rng.normal(size=(2, *size, 2)).astype(np.float32)

    @jax.jit
    def run(x):
        out, pullback = jax.vjp(lambda x: pool.adaptive_max_pool(x, size), x)
        return out, pullback(weights)[0]

    out, gradient = run(x)
    for b in range(2):
        for d in range(2):
            expected = slow_adaptive_pool(x[b, :, :, d], weights[b, :, :, d])
            np.testing.assert_array_equal(out[b, :, :, d], expected[0])
            np.testing.assert_allclose(gradient[b, :, :, d], expected[1], rtol=1e-5, atol=1e-6)


def test_an_adaptive_size_above_that_of_the_map_is_refused():
    for size in ((0, 4), (4, 5)):
        with pytest.raises(ValueError, match=r"size must be 1 to that of the map, \(4, 4\), not"):
            pool.adaptive_max_pool(jnp.zeros((1, 4, 4, 1)), size)


def test_padding_is_never_the_maximum():
    x = -np.arange(1.0, 17.0, dtype=np.float32).reshape(1, 4, 4, 1)
    # Windows start at -1 and 1.
    np.testing.assert_array_equal(pool.max_pool(x, 3, 2)[0, :, :, 0], [[-1, -2], [-5, -6]])


@pytest.mark.parametrize("at", range(5))
def test_nan_is_larger_than_any_number(at):
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5, 1)
    x[0, 0, at] = np.nan
    expected = [np.isnan(x[0, 0, max(i - 1, 0) : i + 2]).any() for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.isnan(pool.max_pool(x, 3, 2)[0, 0, :, 0]), expected)


def test_pooling_twice_and_three_times_gives_the_sizes_9_and_13():
    x = jax.random.normal(jax.random.key(0), (1, 15, 11, 3))
    twice = pool.max_pool(pool.max_pool(x, 5), 5)
    np.testing.assert_array_equal(twice, pool.max_pool(x, 9))
    np.testing.assert_array_equal(pool.max_pool(twice, 5), pool.max_pool(x, 13))


def test_an_even_size_without_padding_is_refused():
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"size must be odd and at least 1, not {size}"):
            pool.max_pool(jnp.zeros((1, 4, 4, 1)), size)

"""Corner pooling: four directions, two programs, and the gradient of tied cells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import corner_pool as corner_pool_lib

SEED = 0
DIRECTIONS = ("top", "bottom", "left", "right")
corner_pool = jax.jit(corner_pool_lib.corner_pool, static_argnums=1)
AXIS = (1, 2)  # of rows and of columns in [B, H, W, D]


@functools.partial(jax.jit, static_argnums=2)
def pull_back(x, dy, direction):
    pooled, vjp = jax.vjp(lambda x: corner_pool_lib.corner_pool(x, direction), x)
    return pooled, vjp(dy)[0]


def slow_pool(x, dy, direction):
    """The pooled map and its gradient, cell by cell; the last of tied cells wins."""
    axis, reverse = corner_pool_lib._DIRECTIONS[direction]
    x, dy = np.moveaxis(x, axis, 0), np.moveaxis(dy, axis, 0)
    pooled, dx = np.empty_like(x), np.zeros_like(dy)
    for cell in np.ndindex(x.shape[1:]):
        best = None
        for i in range(len(x))[:: -1 if reverse else 1]:
            if best is None or x[(i, *cell)] >= x[(best, *cell)]:
                best = i
            pooled[(i, *cell)] = x[(best, *cell)]
            dx[(best, *cell)] += dy[(i, *cell)]
    return np.moveaxis(pooled, 0, axis), np.moveaxis(dx, 0, axis)


def integer_maps(seed, shape=(2, 7, 5, 3), values=4):
    """A few small integers: most maxima are tied, and all sums are exact in float32."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, shape).astype(np.float32)
    return x, rng.integers(-8, 9, shape).astype(np.float32)


def test_a_literal_map():
    x = jnp.array([[1.0, 5, 2], [3, 0, 4]])[..., None]
    expected = {
        "top": [[3, 5, 4], [3, 0, 4]],
        "bottom": [[1, 5, 2], [3, 5, 4]],
        "left": [[5, 5, 2], [4, 4, 4]],
        "right": [[1, 5, 5], [3, 3, 4]],
    }
    for direction in DIRECTIONS:
        np.testing.assert_array_equal(corner_pool(x, direction)[..., 0], expected[direction])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_values_and_gradients_equal_the_reference(unit_cases, direction):
    case, arrays = unit_cases("ops")[f"corner_pool_{direction}"]
    arrays = {name: np.moveaxis(values, 1, -1) for name, values in arrays.items()}  # NHWC
    pooled, gradient = pull_back(arrays["x"], arrays["cot_out"], direction)
    np.testing.assert_array_equal(pooled, arrays["out"])
    np.testing.assert_allclose(gradient, arrays["grad_x"], **case["tolerance"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_of_equal_cells_goes_to_the_last_that_the_maximum_met(direction):
    x, dy = integer_maps(SEED)
    pooled, gradient = pull_back(x, dy, direction)
    expected, expected_gradient = slow_pool(x, dy, direction)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_gradient_of_equal_cells_in_a_row_is_that_of_torch_cummax():
    """Recorded with torch 2.13: cummax of these seven numbers, cotangent 1..7."""
    x = np.array([1, 3, 3, 0, 3, 5, 5], np.float32).reshape(1, 7, 1)
    dy = np.arange(1, 8, dtype=np.float32).reshape(1, 7, 1)
    _, gradient = pull_back(x, dy, "right")
    np.testing.assert_array_equal(gradient.ravel(), [1, 2, 7, 0, 5, 6, 7])


@pytest.mark.parametrize("axis", AXIS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_programs_of_accelerators_and_cpus_agree(axis, reverse):
    """They agree exactly, because sums of small integers do not depend on their order."""
    x, dy = integer_maps([SEED, 1], (2, 13, 16, 5))
    starts = x == jax.lax.cummax(x, axis, reverse)

    @jax.jit
    def both(x, starts, dy):
        pooled = (
            corner_pool_lib._max_by_rows(x, axis, reverse),
            jax.lax.cummax(x, axis, reverse),
        )
        sums = (
            corner_pool_lib._sum_runs_by_rows(starts, dy, axis, reverse),
            corner_pool_lib._sum_runs_by_halves(starts, dy, axis, reverse),
        )
        return pooled, sums

    for cpu, default in both(x, starts, dy):
        np.testing.assert_array_equal(cpu, default)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_equals_finite_differences_in_float64(direction):
    with jax.enable_x64(True):
        rng = np.random.default_rng(SEED)
        x, dx = rng.permutation(84).reshape(1, 7, 4, 3) / 8, rng.normal(size=(1, 7, 4, 3))

        @jax.jit
        def loss(x):
            return jnp.sin(corner_pool_lib.corner_pool(x, direction)).sum()

        gradient = jax.jit(jax.grad(loss))(x)
        assert gradient.dtype == jnp.float64
        # Values differ by at least 1/8, so no maximum changes.  Central differences have errors of
        # step^2 times third derivatives, and of 1e-16 / step.
        step = 1e-5
        along = (loss(x + step * dx) - loss(x - step * dx)) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradient, dx), along, rtol=1e-7)


def test_opposite_directions_are_mirror_images_and_rows_are_columns_turned():
    x, _ = integer_maps([SEED, 2], (2, 6, 6, 3), values=50)
    top = corner_pool(x, "top")
    np.testing.assert_array_equal(corner_pool(x[:, ::-1], "bottom")[:, ::-1], top)
    np.testing.assert_array_equal(corner_pool(x.swapaxes(1, 2), "left").swapaxes(1, 2), top)
    np.testing.assert_array_equal(
        corner_pool(x[:, :, ::-1], "right")[:, :, ::-1], corner_pool(x, "left")
    )


def test_pooling_twice_changes_nothing_more_and_a_border_keeps_its_values():
    x, _ = integer_maps([SEED, 3], (2, 6, 6, 3), values=50)
    once = corner_pool(x, "top")
    np.testing.assert_array_equal(corner_pool(once, "top"), once)
    np.testing.assert_array_equal(once[:, -1], x[:, -1])
    np.testing.assert_array_equal(once[:, 0], x.max(axis=1))


def test_rows_of_the_smallest_value_below_change_no_row_above_and_take_no_gradient():
    x, dy = integer_maps(SEED)
    padding = ((0, 0), (0, 3), (0, 0), (0, 0))
    pooled, gradient = pull_back(x, dy, "top")
    padded, padded_gradient = pull_back(
        np.pad(x, padding, constant_values=-np.inf), np.pad(dy, padding), "top"
    )
    np.testing.assert_array_equal(padded[:, :-3], pooled)
    np.testing.assert_array_equal(padded_gradient[:, :-3], gradient)
    np.testing.assert_array_equal(padded_gradient[:, -3:], 0)


def test_bfloat16_stays_bfloat16_and_maps_without_cells_stay_empty():
    x = jnp.ones((2, 3, 4), jnp.bfloat16)
    pooled, gradient = pull_back(x, x, "left")
    assert pooled.dtype == gradient.dtype == jnp.bfloat16
    empty = jnp.zeros((0, 3, 4))
    pooled, gradient = pull_back(empty, empty, "top")
    assert pooled.shape == gradient.shape == (0, 3, 4)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="'up'"):
        corner_pool_lib.corner_pool(jnp.zeros((2, 2, 1)), "up")
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        corner_pool_lib.corner_pool(jnp.zeros((2, 2)), "top")

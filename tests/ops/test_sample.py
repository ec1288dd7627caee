"""Bilinear samples: the four cells, their adjoint in both programs, and the derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import sample

HEIGHT, WIDTH, DEPTH = 5, 6, 3


def positions(count, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.uniform(0, HEIGHT - 1, count).astype(np.float32)
    return y, rng.uniform(0, WIDTH - 1, count).astype(np.float32)


def test_a_sample_between_four_cells_is_their_weighted_mean():
    cells = jnp.arange(4.0)[:, None]  # 0 1 over 2 3
    corners = sample.corners(jnp.array([0.25]), jnp.array([0.5]), 2, 2)
    np.testing.assert_array_equal(corners.index, [[0, 1, 2, 3]])
    np.testing.assert_allclose(corners.weight, [[0.375, 0.375, 0.125, 0.125]])
    np.testing.assert_allclose(sample.gather(cells, corners), [[1.0]])  # 0.25 * 2 + 0.5


def test_samples_of_a_linear_map_are_linear_and_those_on_cells_are_the_cells():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    cells = np.stack([rows, columns], -1).reshape(-1, 2)
    y, x = positions(50)
    out = sample.gather(jnp.asarray(cells), sample.corners(y, x, HEIGHT, WIDTH))
    np.testing.assert_allclose(out, np.stack([y, x], -1), atol=2e-6)  # a few roundings of 5
    corners = sample.corners(rows.ravel(), columns.ravel(), HEIGHT, WIDTH)
    np.testing.assert_array_equal(sample.gather(jnp.asarray(cells), corners), cells)


def test_both_adjoints_are_those_of_autodiff():
    rng = np.random.default_rng(1)
    cells = rng.standard_normal((HEIGHT * WIDTH, DEPTH)).astype(np.float32)
    corners = sample.corners(*positions(80), HEIGHT, WIDTH)  # many samples share cells
    values = jnp.asarray(rng.standard_normal((80, DEPTH)), jnp.float32)
    _, vjp = jax.vjp(
        lambda cells, weight: sample.gather(cells, sample.Corners(corners.index, weight)),
        jnp.asarray(cells),
        corners.weight,
    )
    d_cells, d_weight = vjp(values)
    start = rng.standard_normal(cells.shape).astype(np.float32)
    for sequential in (False, True):
        total = sample.scatter_add(jnp.asarray(start), corners, values, sequential)
        np.testing.assert_allclose(total - start, d_cells, rtol=1e-5, atol=1e-5)
        found = sample.weight_gradient(jnp.asarray(cells), corners, values, sequential)
        np.testing.assert_allclose(found, d_weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("height, width", [(1, 4), (4, 1), (1, 1)])
def test_maps_of_one_row_or_column_are_sampled_inside(height, width):
    y, x = jnp.linspace(0, height - 1, 5), jnp.linspace(0, width - 1, 5)
    corners = sample.corners(y, x, height, width)
    assert corners.index.min() >= 0 and corners.index.max() < height * width
    np.testing.assert_allclose(corners.weight.sum(-1), 1.0, rtol=1e-6)

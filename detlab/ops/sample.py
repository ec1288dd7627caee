"""Bilinear samples of a map and their adjoint, shared by RoIAlign and deformable convolution.

A map is a matrix of cells, [N, D], so a sample is four rows with four weights.  Only the weights
are differentiable in the position.

XLA compiles a gather well on every platform.  On a CPU its scatter-add, the adjoint, is five times
slower than a plain loop that updates one row at a time (`sequential` here).  On an accelerator each
step of that loop would cost a launch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Corners(NamedTuple):
    """The four cells around each sample: top left, top right, bottom left, bottom right."""

    index: jax.Array  # [..., 4] int32 row of the matrix of cells
    weight: jax.Array  # [..., 4] float


def corners(y, x, height, width) -> Corners:
    """The four cells around each position on a map, and their weights.

    Args:
      y, x: [...] positions in cells; they broadcast.  Cell (i, j) lies at (i, j).  Positions must
        be inside: 0 <= y <= height - 1, 0 <= x <= width - 1.
      height, width: [...] cells; numbers, or arrays that broadcast with the positions.
    Returns:
      `Corners` [..., 4].  Where y or x is a whole number, the derivative of `weight` is the one
      towards larger coordinates.
    Example:
      A quarter of a cell down and half a cell to the right, on a map of 2x2 cells.
      >>> index, weight = corners(jnp.array(0.25), jnp.array(0.5), height=2, width=2)
      >>> index.tolist(), weight.tolist()
      ([0, 1, 2, 3], [0.375, 0.375, 0.125, 0.125])
    """
    y, x = jnp.broadcast_arrays(y, x)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    weight = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    beside = jnp.minimum(left + 1, width - 1)
    upper, lower = top * width, jnp.minimum(top + 1, height - 1) * width
    index = [upper + left, upper + beside, lower + left, lower + beside]
    return Corners(jnp.stack(index, -1), jnp.stack(weight, -1))


def gather(cells, corners: Corners):
    """Samples [..., D] of `cells` [N, D].

    Example:
      The cells 0 1 over 2 3: 0.375 * 1 + 0.125 * 2 + 0.125 * 3.
      >>> cells = jnp.array([[0.0], [1], [2], [3]])
      >>> gather(cells, corners(jnp.array(0.25), jnp.array(0.5), 2, 2)).tolist()
      [1.0]
    """
    return sum(
        cells.at[corners.index[..., i]].get(mode="clip") * corners.weight[..., i, None]
        for i in range(4)
    )


def scatter_add(total, corners: Corners, values, sequential: bool):
    """Adjoint of `gather` in `cells`: `total` [N, D] plus the weighted `values` [..., D].

    Example:
      >>> at = corners(jnp.array([0.25]), jnp.array([0.5]), 2, 2)
      >>> scatter_add(jnp.zeros((4, 1)), at, jnp.array([[8.0]]), sequential=False).ravel().tolist()
      [3.0, 3.0, 1.0, 1.0]
    """
    if not sequential:
        for i in range(4):
            share = values * corners.weight[..., i, None]
            total = total.at[corners.index[..., i]].add(share.astype(total.dtype))
        return total
    index, weight = (c.reshape(-1, 4) for c in corners)
    values = values.reshape(-1, values.shape[-1]).astype(total.dtype)

    def step(p, total):
        for i in range(4):
            row = lax.dynamic_slice_in_dim(total, index[p, i], 1)
            row += weight[p, i].astype(total.dtype) * values[p]
            total = lax.dynamic_update_slice_in_dim(total, row, index[p, i], 0)
        return total

    return lax.fori_loop(0, len(index), step, total)


def weight_gradient(cells, corners: Corners, values, sequential: bool):
    """Adjoint of `gather` in `weight`, [..., 4]: `values` [..., D] times `cells` [N, D].

    Example:
      >>> at = corners(jnp.array([0.25]), jnp.array([0.5]), 2, 2)
      >>> cells = jnp.array([[0.0], [1], [2], [3]])
      >>> weight_gradient(cells, at, jnp.array([[10.0]]), sequential=False).tolist()
      [[0.0, 10.0, 20.0, 30.0]]
    """
    if not sequential:
        products = [
            (cells.at[corners.index[..., i]].get(mode="clip") * values).sum(-1) for i in range(4)
        ]
        return jnp.stack(products, -1)
    index, values = corners.index.reshape(-1, 4), values.reshape(-1, values.shape[-1])

    def step(p, out):
        rows = [lax.dynamic_slice_in_dim(cells, index[p, i], 1) for i in range(4)]
        products = jnp.concatenate(rows) @ values[p]  # [4]
        return lax.dynamic_update_slice_in_dim(out, products[None].astype(out.dtype), p, 0)

    out = lax.fori_loop(0, len(index), step, jnp.zeros(index.shape, values.dtype))
    return out.reshape(corners.index.shape)

"""Corner pooling: running maxima along rows or columns (CornerNet, arXiv:1808.01244, section 3.4).

If several cells hold the maximum, the gradient goes to the last one that the running maximum
reached, as in the reference (`torch.cummax`).  XLA's cumulative maximum would divide it among all
of them.  Ties are common: the pooled maps come out of a ReLU and are full of zeros.

Two programs compute the same result.  CPUs scan the map one row or column at a time.  On
accelerators each step of a scan costs a launch, so they use cumulative operations of logarithmic
depth.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# The pooled axis, and whether the maximum runs backwards along it.
_DIRECTIONS = {"top": (-3, True), "bottom": (-3, False), "left": (-2, True), "right": (-2, False)}


def corner_pool(x, direction: str):
    """The largest value between each cell and one border of the map, both included.

    Args:
      x: [..., H, W, D] float.
      direction: static.  "top" pools over the cell and those below it, "bottom" over those above,
        "left" over those to its right, "right" over those to its left.
    Returns:
      [..., H, W, D], in the dtype of x.  Reverse-mode differentiable only.
    Raises:
      ValueError: unknown direction, or fewer than three axes.
    Example:
      >>> x = jnp.array([[1.0, 5.0, 2.0], [3.0, 0.0, 4.0]])[:, :, None]
      >>> corner_pool(x, "left")[:, :, 0].tolist()
      [[5.0, 5.0, 2.0], [4.0, 4.0, 4.0]]
    """
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(_DIRECTIONS)}, not {direction!r}")
    if x.ndim < 3:
        raise ValueError(f"x must be [..., H, W, D], not {x.shape}")
    axis, reverse = _DIRECTIONS[direction]
    return _running_max(x, axis % x.ndim, reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _running_max(x, axis, reverse):
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_max_by_rows, axis=axis, reverse=reverse),
        default=functools.partial(lax.cummax, axis=axis, reverse=reverse),
    )


def _running_max_forward(x, axis, reverse):
    pooled = _running_max(x, axis, reverse)
    return pooled, x == pooled  # the cells where a maximum starts or is reached again


def _running_max_backward(axis, reverse, starts, dy):
    dx = lax.platform_dependent(
        starts,
        dy,
        cpu=functools.partial(_sum_runs_by_rows, axis=axis, reverse=reverse),
        default=functools.partial(_sum_runs_by_halves, axis=axis, reverse=reverse),
    )
    return (dx,)


_running_max.defvjp(_running_max_forward, _running_max_backward)


def _max_by_rows(x, axis, reverse):
    rows = jnp.moveaxis(x, axis, 0)

    def step(largest, row):
        largest = jnp.maximum(largest, row)
        return largest, largest

    smallest = jnp.full(rows.shape[1:], -jnp.inf, x.dtype)
    _, pooled = lax.scan(step, smallest, rows, reverse=reverse)
    return jnp.moveaxis(pooled, 0, axis)


# A run is a start and the cells after it up to the next start; all of them take the start's value.
def _sum_runs_by_rows(starts, dy, axis, reverse):
    """At each start, the sum of `dy` over its run, 0 elsewhere; scans opposite to the pooling."""

    def step(total, row):
        start, dy = row
        total = total + dy
        return jnp.where(start, 0, total), jnp.where(start, total, 0)

    rows = jnp.moveaxis(starts, axis, 0), jnp.moveaxis(dy, axis, 0)
    nothing = jnp.zeros(rows[1].shape[1:], dy.dtype)
    _, dx = lax.scan(step, nothing, rows, reverse=not reverse)
    return jnp.moveaxis(dx, 0, axis)


def _sum_runs_by_halves(starts, dy, axis, reverse):
    """The same sums, by joining pieces of the axis: (whether a run ends in it, its open sum)."""

    def join(before, piece):  # in the order of the scan
        ends = piece[0]
        return before[0] | ends, jnp.where(ends, piece[1], before[1] + piece[1])

    # The cell before a start ends a run.  The value that the roll wraps around lands on the first
    # cell of the scan, which has nothing before it to cut off.
    ends = jnp.roll(starts, 1 if reverse else -1, axis)
    _, sums = lax.associative_scan(join, (ends, dy), reverse=not reverse, axis=axis)
    return jnp.where(starts, sums, 0)

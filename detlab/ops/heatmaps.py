"""Heatmaps of points: drawing targets and picking peaks (CornerNet, arXiv:1808.01244, section 3.2).

A map is [H, W, C] with one channel for each class.  A cell is given by its column and row, or by
one number, row * W + column.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

Array = Any


class Peaks(NamedTuple):
    """Local maxima, best first; empty slots come last and hold zeros."""

    cells: Array  # [K] int32, row * W + column
    labels: Array  # [K] int32 channel
    scores: Array  # [K]
    valid: Array  # [K] bool


def gaussian_radius(sizes, min_overlap: float):
    """How far both corners of a box can move and keep an IoU of `min_overlap` with the old box.

    The reference takes the smallest root of three quadratic equations: one corner moves inwards
    and the other outwards, both outwards, both inwards.  The last case always loses the most
    overlap, so only its equation is solved here: (w - 2r) (h - 2r) = min_overlap w h.

    Args:
      sizes: [..., 2] width and height, in any unit; the radius of sizes of 0 or less is 0.
      min_overlap: in (0, 1); 0.3 for CornerNet and CentripetalNet, 0.7 for RepPoints v2.
    Returns:
      [...] float32 radius in that unit.  Where it is a whole number, as for a box of 10 x 24 cells
      at 0.3, the reference's double precision can end just below it, and the rounded-down radius is
      one less: 1 in 1000 of all sizes up to 300 x 300 cells.
    Example:
      >>> round(float(gaussian_radius((4, 4), 0.25)), 3)  # (4 - 2) * (4 - 2) is 0.25 * 4 * 4
      1.0
    """
    sizes = jnp.maximum(jnp.asarray(sizes, jnp.float32), 0)
    total = sizes[..., 0] + sizes[..., 1]
    lost = (1 - min_overlap) * (sizes[..., 0] * sizes[..., 1])
    # The smaller root of 4 r^2 - 2 total r + lost, without a difference of nearly equal numbers.
    return lost / jnp.maximum(total + jnp.sqrt(total**2 - 4 * lost), 1e-6)


def draw_gaussians(points, radii, labels, valid, shape: tuple[int, int], num_classes: int):
    """Draws peaks of height 1 in the channels of their classes; overlaps keep the larger value.

    A peak is exp(-d^2 / (2 sigma^2)) with sigma = (2 radius + 1) / 6, cut to a square of
    2 radius + 1 cells.

    Args:
      points: [G, 2] int column and row of the peak's cell.
      radii: [G] int cells, >= 0.
      labels: [G] int channel.
      valid: [G] bool; only these are drawn.
      shape: (H, W), static.
      num_classes: C, static.
    Returns:
      [H, W, C] float32 in 0..1; exactly 1 only in the peaks' cells.
    Example:
      >>> point, radius, label = jnp.array([[1, 0]]), jnp.array([1]), jnp.array([0])
      >>> heat = draw_gaussians(point, radius, label, jnp.array([True]), (1, 4), num_classes=1)
      >>> [round(float(x), 3) for x in heat.ravel()]  # exp(-2) beside the peak
      [0.135, 1.0, 0.135, 0.0]
    """

    def profile(centers, length):  # [G, length]; the gaussian is the product of two of these
        distance = jnp.abs(jnp.arange(length) - centers[:, None])
        sigma = (2 * radii[:, None] + 1) / 6
        inside = (distance <= radii[:, None]) & valid[:, None]
        return jnp.where(inside, jnp.exp(-(distance**2) / (2 * sigma**2)), 0.0)

    height, width = shape
    columns, rows = profile(points[:, 0], width), profile(points[:, 1], height)
    gaussians = rows[:, :, None] * columns[:, None, :]  # [G, H, W]
    heat = jnp.zeros((num_classes, height, width)).at[labels].max(gaussians)
    return jnp.moveaxis(heat, 0, -1)


def local_maxima(heat, kernel: int = 3):
    """Marks the cells that hold the largest value in a square around them, ties included.

    Args:
      heat: [H, W, C].
      kernel: cells along the side of the square, odd, static.
    Returns:
      [H, W, C] bool.
    Raises:
      ValueError: `kernel` is even or below 1.
    Example:
      >>> local_maxima(jnp.array([[[1.0], [3.0], [2.0], [5.0]]]))[0, :, 0].tolist()
      [False, True, False, True]
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd and at least 1, not {kernel}")
    reach = kernel // 2
    largest = heat
    # Maxima of shifted maps, one axis at a time: 5 times faster than XLA's pooling on a CPU.
    for axis in (0, 1):
        padding = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
        padded = jnp.pad(largest, padding, constant_values=-jnp.inf)
        for start in range(kernel):
            shifted = lax.slice_in_dim(padded, start, start + heat.shape[axis], axis=axis)
            largest = jnp.maximum(largest, shifted)
    return heat == largest


def find_peaks(heat, max_peaks: int, kernel: int = 3) -> Peaks:
    """The best local maxima of a map, over all its channels.

    Args:
      heat: [H, W, C] float.
      max_peaks: K, static; may be larger than the map.
      kernel: as in `local_maxima`.
    Returns:
      The peaks; equal scores are ordered by row, column and channel.  If there are fewer than K
      maxima, the reference fills up with other cells at score 0; here those slots are empty.
    Raises:
      ValueError: `heat` is not [H, W, C], `max_peaks` is below 1, or `kernel` is even or
        below 1.
    Example:
      >>> peaks = find_peaks(jnp.array([[[1.0], [3.0], [2.0], [5.0]]]), max_peaks=3)
      >>> peaks.cells.tolist(), peaks.scores.tolist(), peaks.valid.tolist()
      ([3, 1, 0], [5.0, 3.0, 0.0], [True, True, False])
    """
    if heat.ndim != 3:
        raise ValueError(f"heat must be [H, W, C], not {heat.shape}")
    if max_peaks < 1:
        raise ValueError(f"max_peaks must be at least 1, not {max_peaks}")
    candidates = jnp.where(local_maxima(heat, kernel), heat, -jnp.inf).ravel()
    scores, positions = lax.top_k(candidates, min(max_peaks, heat.size))
    valid = scores > -jnp.inf
    positions = jnp.where(valid, positions, 0).astype(jnp.int32)
    num_classes = max(heat.shape[2], 1)
    peaks = Peaks(
        cells=positions // num_classes,
        labels=positions % num_classes,
        scores=jnp.where(valid, scores, 0),
        valid=valid,
    )
    empty = (0, max_peaks - len(positions))
    return Peaks(*(jnp.pad(values, empty) for values in peaks))


def take_cells(maps, cells):
    """Takes the values [K, D] of `maps` [H, W, D] at `cells` [K], row * W + column.

    Example:
      >>> take_cells(jnp.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]]), jnp.array([3, 0])).tolist()
      [[6, 7], [0, 1]]
    """
    return maps.reshape(-1, maps.shape[-1])[cells]

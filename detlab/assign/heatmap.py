"""Corner targets: heatmaps, offsets inside cells, and which corners belong together.

CornerNet (arXiv:1808.01244, sections 3.2 and 3.3).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from detlab.ops import heatmaps

Array = Any


class CornerTargets(NamedTuple):
    """The targets of one kind of corner for one image."""

    cells: Array  # [G] int32 row * W + column of each object's corner, 0 where not valid
    heat: Array  # [H, W, C] float32, exactly 1 in the cells of corners
    offset: Array  # [H, W, 2] float32 x, y of the corner in its cell, 0..1; 0 elsewhere


def corners(
    boxes,
    labels,
    valid,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    num_classes: int,
    min_overlap: float = 0.3,
) -> tuple[CornerTargets, CornerTargets]:
    """Targets of both kinds of corners for one image.

    Args:
      boxes: [G, 4] xyxy px, padded.
      labels: [G] int.
      valid: [G] bool.
      shape: (H, W) cells of the map, static.
      canvas: (height, width) px of the network's input, static; a cell is canvas / shape px.
      num_classes: C, static.
      min_overlap: a box whose corners lie within the radius of the gaussian has at least this IoU.
    Returns:
      (top left, bottom right), each CornerTargets.  Where two corners share a cell, the offset is
      that of the later object, as in the reference.
    """
    rows_columns = jnp.array([shape[1] / canvas[1], shape[0] / canvas[0]], jnp.float32)
    points = boxes.reshape(-1, 2, 2) * rows_columns  # [G, 2, 2] corner, (x, y) in cells
    largest = jnp.array([shape[1] - 1, shape[0] - 1])
    cells = jnp.minimum(points, largest).astype(jnp.int32)  # rounded towards 0, as in the reference
    sizes = jnp.ceil(points[:, 1] - points[:, 0])
    radii = jnp.maximum(heatmaps.gaussian_radius(sizes, min_overlap), 0).astype(jnp.int32)

    def of_corner(cells, points):
        flat = jnp.where(valid, cells[:, 1] * shape[1] + cells[:, 0], 0)
        same = (flat[:, None] == flat) & valid[:, None] & valid
        later = jnp.arange(len(flat)) > jnp.arange(len(flat))[:, None]
        counts = valid & ~(same & later).any(1)  # no later object in this cell
        offset = jnp.where(counts[:, None], points - cells, 0.0)
        offsets = jnp.zeros((shape[0] * shape[1], 2)).at[flat].add(offset)
        heat = heatmaps.draw_gaussians(cells, radii, labels, valid, shape, num_classes)
        return CornerTargets(flat, heat, offsets.reshape(*shape, 2))

    return of_corner(cells[:, 0], points[:, 0]), of_corner(cells[:, 1], points[:, 1])

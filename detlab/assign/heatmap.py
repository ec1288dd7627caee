"""Corner targets: heatmaps, offsets inside cells, and which corners belong together.

CornerNet (arXiv:1808.01244, sections 3.2 and 3.3); shifts from corners to centres are those of
CentripetalNet (arXiv:2003.09119, sections 3.1 and 3.3).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from detlab.ops import heatmaps

Array = Any

# An object has at least this half width and height in cells, so its logarithm is finite.
_SMALLEST = 1e-3


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
    points, cells = _corners(boxes, shape, canvas)
    sizes = jnp.ceil(points[:, 1] - points[:, 0])
    radii = jnp.maximum(heatmaps.gaussian_radius(sizes, min_overlap), 0).astype(jnp.int32)

    def of_corner(cells, points):
        flat = jnp.where(valid, cells[:, 1] * shape[1] + cells[:, 0], 0)
        heat = heatmaps.draw_gaussians(cells, radii, labels, valid, shape, num_classes)
        return CornerTargets(flat, heat, _at_cells(points - cells, flat, valid, shape))

    return of_corner(cells[:, 0], points[:, 0]), of_corner(cells[:, 1], points[:, 1])


class Shifts(NamedTuple):
    """From the corners of one kind to the centres of their objects, for one image; 0 elsewhere."""

    guiding: Array  # [H, W, 2] float32 x, y from the cell's index to the centre, in cells
    centripetal: Array  # [H, W, 2] float32 x, y: logarithm of the distance of corner and centre


def shifts(boxes, valid, shape: tuple[int, int], canvas: tuple[int, int]) -> tuple[Shifts, Shifts]:
    """CentripetalNet's targets for one image, both kinds positive inside an object.

    Args:
      boxes: [G, 4] xyxy px, padded.
      valid: [G] bool.
      shape: (H, W) of the map.
      canvas: (height, width) px.
    Returns:
      (top left, bottom right), each Shifts; where two corners share a cell, of the later object.
    Example:
      A cell is 4 px.  The centre is at 3 cells, the corners at 1.25 and 4.75.
      >>> boxes, valid = jnp.array([[5.0, 5, 19, 19]]), jnp.array([True])
      >>> first, second = shifts(boxes, valid, (8, 8), (32, 32))
      >>> first.guiding[1, 1].tolist(), second.guiding[4, 4].tolist()
      ([2.0, 2.0], [1.0, 1.0])
      >>> jnp.exp(first.centripetal[1, 1]).tolist()
      [1.75, 1.75]
    """
    points, cells = _corners(boxes, shape, canvas)
    center = points.mean(1)  # [G, 2]
    distance = jnp.log(jnp.maximum(center - points[:, 0], _SMALLEST))

    def of_corner(cells, guiding):
        flat = jnp.where(valid, cells[:, 1] * shape[1] + cells[:, 0], 0)
        return Shifts(*(_at_cells(x, flat, valid, shape) for x in (guiding, distance)))

    return of_corner(cells[:, 0], center - cells[:, 0]), of_corner(
        cells[:, 1], cells[:, 1] - center
    )


def _corners(boxes, shape, canvas):
    """Both corners of boxes [G, 4] in cells: points [G, 2, 2] x, y, and the cells they are in."""
    rows_columns = jnp.array([shape[1] / canvas[1], shape[0] / canvas[0]], jnp.float32)
    points = boxes.reshape(-1, 2, 2) * rows_columns
    largest = jnp.array([shape[1] - 1, shape[0] - 1])
    cells = jnp.minimum(points, largest).astype(jnp.int32)  # rounded towards 0, as in the reference
    return points, cells


def _at_cells(values, flat, valid, shape):
    """A map [H, W, D] of values [G, D] at cells [G]; where two share one, of the later; else 0."""
    same = (flat[:, None] == flat) & valid[:, None] & valid
    later = jnp.arange(len(flat)) > jnp.arange(len(flat))[:, None]
    counts = valid & ~(same & later).any(1)  # no later object in this cell
    values = jnp.where(counts[:, None], values, 0.0)
    filled = jnp.zeros((shape[0] * shape[1], values.shape[1])).at[flat].add(values)
    return filled.reshape(*shape, -1)

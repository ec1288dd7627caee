"""Targets of the tasks that verify points: corners and foreground (RepPoints V2, arXiv:2007.08508).

Every object takes part on every level of the pyramid, whatever its size.  For the corners, objects
are scanned, see `slots` for how many at a time: memory on a CPU is a few vectors of N points.  The
foreground needs N x G weights and N x C results: 16 MB with 22,400 points, 100 objects and 80
classes.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from detlab.assign import slots as slots_lib
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import heatmaps

Array = Any


class CornerTargets(NamedTuple):
    """The targets of one kind of corner for one image, at all points."""

    heat: Array  # [N] float32 in 0..1, exactly 1 at the peaks
    offset: Array  # [N, 2] float32 x, y of the corner from the point, in strides; 0 off the peaks


def targets(
    grid: anchors_lib.Grid, boxes, labels, valid, image_size, num_classes: int, min_overlap: float
) -> dict[str, Array]:
    """`corners` and `foreground` of one image.

    Args:
      grid: of the points.
      boxes: [G, 4] xyxy px, padded.
      labels: [G] int.
      valid: [G] bool.
      image_size: [2] int32 height, width px of the content.
      num_classes: C, static.
      min_overlap: of `corners`.
    Returns:
      top_left_heat [N], top_left_offset [N, 2], the same of bottom_right, and foreground [N, C].
    """
    first, second = corners(grid, boxes, valid, image_size, min_overlap)
    return {
        "top_left_heat": first.heat,
        "top_left_offset": first.offset,
        "bottom_right_heat": second.heat,
        "bottom_right_offset": second.offset,
        "foreground": foreground(grid, boxes, labels, valid, image_size, num_classes),
    }


def corners(
    grid: anchors_lib.Grid, boxes, valid, image_size, min_overlap: float = 0.7
) -> tuple[CornerTargets, CornerTargets]:
    """Targets of both kinds of corners for one image.

    On each level the point nearest to a corner is a peak.  Around the corner the heat of all points
    falls like a gaussian of their distance, up to the radius of `heatmaps.gaussian_radius`; both
    are px, so that coarse levels have no heat beside the peaks of small objects.

    Args:
      grid: of the points, at the top left of their cells.
      boxes: [G, 4] xyxy px, padded.
      valid: [G] bool.
      image_size: [2] int32 height, width px of the content; points in padding have no targets.
      min_overlap: a box whose corners lie within the radius has at least this IoU.
    Returns:
      (top left, bottom right).  Where corners share a peak, the offset is that of the later object,
      as in the reference.
    """
    points, stride, inside = grid.points(), grid.stride(), grid.inside(image_size)
    radii = heatmaps.gaussian_radius(boxes[:, 2:] - boxes[:, :2], min_overlap)  # [G] px
    decay = 4.5 / jnp.square(radii + 0.5)  # 1 / (2 sigma^2) with sigma = (2 radius + 1) / 6
    slots = jnp.arange(len(boxes), dtype=jnp.int32)

    def of_corner(corner):
        def step(exponent, gts):
            corner, radius, decay, valid = (x[:, None] for x in gts)  # [B, 1, 2], [B, 1] each
            square = jnp.square(points - corner).sum(-1)  # [B, N]
            reached = valid & inside & (jnp.sqrt(square) < radius)
            return jnp.maximum(exponent, jnp.where(reached, -square * decay, -jnp.inf).max(0))

        nothing = jnp.full(len(points), -jnp.inf)
        gts = corner, radii, decay, valid
        exponent = slots_lib.scan(step, nothing, gts, len(points))

        latest = jnp.zeros(len(points), jnp.int32)  # slot + 1, or 0
        for part, (rows, columns), step_px in zip(
            grid.slices(), grid.shapes, grid.strides, strict=True
        ):
            # Halfway between two points the first one is the nearest, as in the reference.
            last = jnp.minimum((image_size[::-1] - 1) // step_px, jnp.array([columns, rows]) - 1)
            cell = jnp.clip(jnp.ceil(corner / step_px - 0.5).astype(jnp.int32), 0, last)
            index = part.start + cell[:, 1] * columns + cell[:, 0]  # [G]
            latest = latest.at[index].max(jnp.where(valid, slots + 1, 0))
        is_peak = latest > 0
        learned = jnp.concatenate([jnp.zeros((1, 2)), corner])[latest]  # [N, 2]
        distance = (learned - points) / stride[:, None]
        return CornerTargets(
            heat=jnp.where(is_peak, 1.0, jnp.exp(exponent)),
            offset=jnp.where(is_peak[:, None], distance, 0.0),
        )

    return of_corner(boxes[:, :2]), of_corner(boxes[:, 2:])


def foreground(grid: anchors_lib.Grid, boxes, labels, valid, image_size, num_classes: int):
    """Which points are foreground of which class, and how much each of them counts.

    A point is foreground of a class if a box of that class covers its cell, and counts 1 / area of
    the smallest such box, so that large objects do not outweigh small ones.  Cells are those of the
    first level; each cell of another level stands for one of them, as in the reference, which
    resizes the map of the first level by nearest neighbours.

    Args:
      grid: of the points.
      boxes: [G, 4] xyxy px, padded.
      labels: [G] int.
      valid: [G] bool.
      image_size: [2] int32 height, width px of the content; points in padding are background.
      num_classes: C, static.
    Returns:
      [N, C] float32 px^-2; 0 is background.
    """
    cells = []
    for rows, columns in grid.shapes:
        first_rows, first_columns = grid.shapes[0]
        y, x = np.arange(rows) * first_rows // rows, np.arange(columns) * first_columns // columns
        cells.append(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    cells = jnp.concatenate([jnp.asarray(x, jnp.int32) for x in cells])  # [N, 2] column, row
    inside = grid.inside(image_size)
    ends = jnp.floor(boxes / grid.strides[0]).astype(jnp.int32)[:, None]  # [G, 1, 4] included
    covered = ((cells >= ends[..., :2]) & (cells <= ends[..., 2:])).all(-1)  # [G, N]
    weight = 1 / jnp.maximum(boxes_lib.area(boxes), boxes_lib.EPS)  # [G]
    weights = jnp.where(covered & inside & valid[:, None], weight[:, None], 0.0)
    return jnp.zeros((num_classes, len(cells))).at[labels].max(weights).T

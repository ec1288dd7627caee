"""Cells at which guided anchors belong (arXiv:1901.03278, "Anchor location targets").

The middle of an object is positive on the level of the object's size.  A ring around it is ignored,
and so are middle and ring on the two neighbouring levels.  All other cells are negative.

Objects are scanned, and `slots` says how many at a time and what memory that takes; on a CPU it is
a few vectors of N cells.  The scan of 22k cells and 100 objects takes 20 ms on two cores.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from detlab.assign import slots
from detlab.ops import anchors as anchors_lib

Array = Any


class Locations(NamedTuple):
    """The assignment of each cell of an image."""

    status: Array  # [N] int32: -1 ignored, 0 negative, 1 positive
    matched: Array  # [N] int32 slot of the object; 0 where not positive


def assign(
    grid: anchors_lib.Grid,
    gt_boxes,
    gt_valid,
    base_scale: float,
    center_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
    cell_valid=None,
) -> Locations:
    """Positive, negative and ignored cells of one image.

    An object belongs to the level whose square anchor, of side `base_scale` strides, is nearest to
    the square root of its area, in octaves.  As in the reference, the ends of a region are rounded
    to whole cells, half to even, and both are in it; an object in a later slot decides about the
    cells that its regions share with those of an earlier one on the same level.

    Args:
      grid: of one prior per cell.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects.
      base_scale: see above.
      center_ratio: sides of the positive region relative to those of the object.
      ignore_ratio: the same for that region and the ring around it; not smaller.
      cell_valid: [N] bool; other cells are ignored.
    Returns:
      Locations.
    """
    level = grid.level()
    stride = grid.stride()[:, None]  # [N, 1]
    cells = grid.points() / stride  # [N, 2] column, row
    width, height = jnp.moveaxis(gt_boxes[:, 2:] - gt_boxes[:, :2], 1, 0)
    octaves = jnp.log2(jnp.sqrt(width * height)) - jnp.log2(base_scale * grid.strides[0])
    own_level = jnp.clip(jnp.floor(octaves + 0.5), 0, len(grid.strides) - 1)  # [G]

    def covers(box, ratio):
        """[B, N] bool: cells in the middle `ratio` of boxes [B, N, 4], in cells."""
        margin = (1 - ratio) / 2
        low, high = box[..., :2], box[..., 2:]
        first = jnp.round((1 - margin) * low + margin * high)
        last = jnp.round(margin * low + (1 - margin) * high)
        # As in the reference, an object left of or above the image marks its first cells.
        first, last = jnp.maximum(first, 0), jnp.maximum(last, 0)
        return ((cells >= first) & (cells <= last)).all(-1)

    def step(carry, gts):
        last, beside = carry
        slot, valid, own = (x[:, None] for x in (gts[0], gts[2], gts[3]))  # [B, 1] each
        box = gts[1][:, None] / stride  # [B, N, 4]
        region, middle = covers(box, ignore_ratio) & valid, covers(box, center_ratio)
        here = jnp.where(region & (level == own), 2 * slot + middle, -1)
        near = region & (jnp.abs(level - own) == 1)
        return jnp.maximum(last, here.max(0)), beside | near.any(0)

    # The last object on each cell, twice its slot plus whether the cell is in its middle.
    none = jnp.full(len(level), -1, jnp.int32)
    gts = (jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid, own_level)
    last, beside = slots.scan(step, (none, none >= 0), gts, len(level))
    status = jnp.where(last >= 0, jnp.where(last % 2 == 1, 1, -1), jnp.where(beside, -1, 0))
    if cell_valid is not None:
        status = jnp.where(cell_valid, status, -1)
    return Locations(status.astype(jnp.int32), jnp.where(status == 1, last // 2, 0))

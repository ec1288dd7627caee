"""Assignment of YOLOv5: by the ratio of sides, in a cell and two of its neighbours.

YOLOv3 compares overlaps; here an anchor learns every object whose width and height are within a
factor of its own, in the cell of the object's centre and in the two neighbour cells nearest to that
centre.  A cell may learn several objects, so an assignment is a list of *entries* (object, anchor,
neighbour), not one choice per cell.

Reference: `build_targets` of ultralytics/yolov5, release 3.0; release 7.0 has the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detlab.ops import boxes as boxes_lib

Array = Any

# The cell of the centre, then the neighbours left, above, right and below: (x, y) cells.
NEIGHBOURS = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))


class Entries(NamedTuple):
    """The entries of one level of an image; E = 5 * A * G, by neighbour, anchor and object."""

    valid: Array  # [E] bool; other entries are meaningless
    column: Array  # [E] int32
    row: Array  # [E] int32
    anchor: Array  # [E] int32 anchor of the cell
    matched: Array  # [E] int32 slot of the object
    xywh: Array  # [E, 4] centre relative to the corner of the cell, width, height; in cells


def assign(
    gt_boxes, gt_valid, anchor_sizes, stride: int | Array, cells, max_ratio: float = 4.0
) -> Entries:
    """The entries of one level of one image.

    If the centre of an object is closer to the left side of its cell, the cell to the left learns
    the object too; if closer to the right side, the cell to the right; likewise above and below.
    Cells outside the map are skipped.  A centre exactly in the middle has no neighbour there.

    Args:
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects.
      anchor_sizes: [A, 2] width, height, px.
      stride: px of a cell; may be traced.
      cells: [2] (rows, columns) of the map, or of its part with content; may be traced.
      max_ratio: limit of the ratio between the sides of object and anchor, either way, exclusive.
    Returns:
      Entries.
    """
    cxcywh = boxes_lib.xyxy_to_cxcywh(gt_boxes) / stride
    center, size = cxcywh[:, :2], cxcywh[:, 2:]  # [G, 2] cells
    ratio = size / (jnp.asarray(anchor_sizes, jnp.float32) / stride)[:, None]  # [A, G, 2]
    alike = jnp.maximum(ratio, 1 / ratio).max(-1) < max_ratio  # [A, G]
    fits = alike & gt_valid

    extent = jnp.asarray(cells, jnp.float32)[::-1]  # columns, rows
    from_end = extent - center
    low = (center % 1 < 0.5) & (center > 1)  # [G, 2] for left, above
    high = (from_end % 1 < 0.5) & (from_end > 1)  # right, below
    near = jnp.stack([jnp.ones_like(gt_valid), low[:, 0], low[:, 1], high[:, 0], high[:, 1]])
    valid = near[:, None] & fits  # [5, A, G]

    # Half a cell towards the neighbour: a centre on a border falls into its own cell again.
    shift = np.float32(NEIGHBOURS) / 2
    last = extent - 1
    cell = jnp.clip(jnp.floor(center + shift[:, None]), 0, last)  # [5, G, 2]
    xywh = jnp.concatenate([center - cell, jnp.broadcast_to(size, cell.shape)], axis=-1)

    def flat(values):  # values broadcast to [5, A, G, ...]
        rest = values.shape[3:]
        return jnp.broadcast_to(values, (*valid.shape, *rest)).reshape(-1, *rest)

    _, num_anchors, slots = valid.shape
    column, row = jnp.moveaxis(cell.astype(jnp.int32), -1, 0)  # [5, G]
    return Entries(
        valid=valid.reshape(-1),
        column=flat(column[:, None]),
        row=flat(row[:, None]),
        anchor=flat(jnp.arange(num_anchors, dtype=jnp.int32)[None, :, None]),
        matched=flat(jnp.arange(slots, dtype=jnp.int32)[None, None]),
        xywh=flat(xywh[:, None]),
    )


class Joined(NamedTuple):
    """The entries of one level in three places, not five; E = 3 * A * G, by place, anchor, object.

    The places are the cell of the centre, its neighbour left or right, and the one above or below.
    """

    entries: Entries
    count: Array  # [E] int32 number of equal entries that this one stands for, 0 if not valid
    last: Array  # [E] int32 index of the last of them in the result of `assign`


def join(entries: Entries) -> Joined:
    """Joins the entries of one level that are equal, so that a loss has fewer rows.

    Of two opposite neighbours only one learns an object, unless the centre is on the border of two
    cells: then half a cell towards the right or lower one is still the cell of the centre.
    """
    index = jnp.arange(entries.valid.size, dtype=jnp.int32).reshape(5, -1)  # [5, A * G]
    own, left, above, right, below = index
    _, at_left, is_above, at_right, is_below = entries.valid.reshape(5, -1)
    again_x, again_y = at_left & at_right, is_above & is_below
    chosen = jnp.stack([own, jnp.where(at_left, left, right), jnp.where(is_above, above, below)])
    last = chosen.at[0].set(jnp.where(again_y, below, jnp.where(again_x, right, own)))
    count = jnp.ones_like(chosen).at[0].add(again_x).at[0].add(again_y)
    found = jax.tree.map(lambda x: x[chosen.reshape(-1)], entries)
    return Joined(found, jnp.where(found.valid, count.reshape(-1), 0), last.reshape(-1))

"""Assignment by grid cell (YOLOv3, arXiv:1804.02767, section 2.1), as in mmdetection.

In the paper only the anchor that fits an object best learns it.  Here, as in mmdetection's
`GridAssigner`, every anchor in the cell of some object's centre is *responsible* and may learn any
object that it overlaps well, which gives more positives.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from detlab.assign import slots
from detlab.ops import boxes as boxes_lib

Array = Any


class Grid(NamedTuple):
    """The assignment of each anchor of an image."""

    status: Array  # [N] int32: -1 ignored, 0 negative, 1 positive
    matched: Array  # [N] int32 slot of the object; meaningless where not positive


def responsible(anchors, strides, gt_boxes, gt_valid):
    """Which anchors are in the cell of an object's centre.

    Args:
      anchors: [N, 4] xyxy px, centred on their cells.
      strides: [N] px, of each anchor's level.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects.
    Returns:
      [N] bool.
    """
    strides = jnp.asarray(strides, jnp.float32)[:, None]
    cells = jnp.floor(boxes_lib.xyxy_to_cxcywh(anchors)[:, :2] / strides)  # [N, 2]
    centers = boxes_lib.xyxy_to_cxcywh(gt_boxes)[:, :2]  # [G, 2]
    gt_cells = jnp.floor(centers / strides[:, None])  # [N, G, 2]
    in_cell = (cells[:, None] == gt_cells).all(-1)  # [N, G]
    return (in_cell & gt_valid).any(1)


def assign(
    anchors,
    strides,
    gt_boxes,
    gt_valid,
    pos_iou: float,
    neg_iou: float,
    min_pos_iou: float = 0.0,
    *,
    anchor_valid=None,
    all_ties: bool = True,
) -> Grid:
    """Positive, negative and ignored anchors of one image.

    An anchor whose largest IoU is at most `neg_iou` is negative.  A responsible anchor whose
    largest IoU exceeds `pos_iou` is matched to that object (the first on ties).  Each object then
    claims the responsible anchor that overlaps it best, if that IoU exceeds `min_pos_iou`; objects
    in later slots take anchors from earlier ones.  All other anchors are ignored.  Without objects,
    all are negative.  Objects are scanned as in `max_iou.assign`.

    Args:
      anchors: [N, 4] xyxy px, centred on their cells.
      strides: [N] px, of each anchor's level.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects; other boxes are never matched.
      pos_iou: threshold.
      neg_iou: threshold.
      min_pos_iou: see above; at least 0.
      anchor_valid: [N] bool; invalid anchors are ignored.
      all_ties: an object claims all anchors that share its best IoU, not only the first.
    Returns:
      Grid.
    """
    takes_part = jnp.ones(len(anchors), bool) if anchor_valid is None else anchor_valid
    in_charge = takes_part & responsible(anchors, strides, gt_boxes, gt_valid)
    positions = jnp.arange(len(anchors))

    def step(carry, gts):
        max_iou, best_iou, matched, claimed = carry
        slot, box, valid = gts  # [B], [B, 4], [B]
        iou = jnp.where(valid[:, None], boxes_lib.iou(anchors, box[:, None]), -1.0)  # [B, N]
        # One array for the maximum and for the comparison with it: see max_iou.
        iou = lax.optimization_barrier(iou)
        own = jnp.where(in_charge, iou, -1.0)
        best = jnp.max(own, axis=1, initial=-1.0, keepdims=True)  # [B, 1]
        claims = (own == best) & (best > min_pos_iou)
        if not all_ties:
            claims &= positions == jnp.argmax(own, axis=1, keepdims=True)
        largest, first = slots.first_largest(own, slot)
        better = largest > best_iou
        last = jnp.where(claims, slot[:, None], -1).max(0)
        return (
            jnp.maximum(max_iou, iou.max(0)),
            jnp.where(better, largest, best_iou),
            jnp.where(better, first, matched),
            jnp.maximum(claimed, last),
        )

    no_iou = jnp.full(len(anchors), -1.0)
    none = jnp.zeros(len(anchors), jnp.int32)
    gts = (jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid)
    carry = slots.scan(step, (no_iou, no_iou, none, none - 1), gts, len(anchors))
    max_iou, best_iou, matched, claimed = carry
    positive = (best_iou > pos_iou) | (claimed >= 0)
    status = jnp.where(positive, 1, jnp.where(max_iou <= neg_iou, 0, -1))
    return Grid(
        status=jnp.where(takes_part, status, -1).astype(jnp.int32),
        matched=jnp.where(claimed >= 0, claimed, matched),
    )

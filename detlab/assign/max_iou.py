"""Assignment by the largest IoU (Faster R-CNN, arXiv:1506.01497, 3.1.2; RetinaNet, SSD).

Objects are scanned, keeping a running maximum for each anchor.  `slots` says how many at a time and
what memory that takes; on a CPU it is a few vectors of N anchors.  The scan of 200k anchors and 100
objects takes 35 ms on a CPU with two cores.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from detlab.assign import slots
from detlab.ops import boxes as boxes_lib

Array = Any


class MaxIoU(NamedTuple):
    """The assignment of each anchor of an image."""

    status: Array  # [N] int32: -1 ignored, 0 negative, 1 positive
    matched: Array  # [N] int32 slot of the object; where not positive, that of the largest IoU
    max_iou: Array  # [N] float32 largest IoU with an object; -1 for excluded anchors


def assign(
    anchors,
    gt_boxes,
    gt_valid,
    pos_iou: float | Array,
    neg_iou: float | Array | tuple[float, float],
    min_pos_iou: float | Array = 0.0,
    *,
    anchor_valid=None,
    approximations=None,
    low_quality: bool = True,
    all_ties: bool = True,
    require_overlap: bool = True,
    gt_ignore=None,
    ignore_iof: float = -1.0,
    ignore_wrt_anchors: bool = True,
) -> MaxIoU:
    """Positive, negative and ignored anchors of one image.

    An anchor whose largest IoU is at least `pos_iou` is matched to that object (the first on ties).
    Below `neg_iou` it is negative, and in between it is ignored.  With `low_quality`, each object
    then claims the anchors that overlap it best, if that IoU is at least `min_pos_iou`; objects in
    later slots take anchors from earlier ones.  Without objects, all anchors are negative.

    Args:
      anchors: [N, 4] xyxy px.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects; other boxes are never matched.
      pos_iou: threshold; may be traced (Dynamic R-CNN).
      neg_iou: threshold, or a pair (low, high): negative only where low <= IoU < high.
      min_pos_iou: see above.
      anchor_valid: [N] bool; invalid anchors are ignored and are never an object's best.
      approximations: [N, A, 4] xyxy px, boxes around each anchor; its IoU with an object is
        then the largest of theirs (Guided Anchoring, arXiv:1901.03278, "Anchor shape targets").
      low_quality: whether objects claim their best anchors.
      all_ties: an object claims all anchors that share its best IoU, not only the first.
      require_overlap: an object that overlaps no anchor claims none.  If False and `min_pos_iou`
        is 0, such an object claims every anchor, as in the reference.
      gt_ignore: [G] bool, boxes of areas to ignore (crowd, difficult).
      ignore_iof: static; anchors whose intersection over area with a `gt_ignore` box is above this
        are ignored.  Off if <= 0, as in all published configurations.  As in the reference, it has
        no effect on images without objects.
      ignore_wrt_anchors: the area is that of the anchor; if False, that of the ignored box.
    Returns:
      MaxIoU.
    Raises:
      ValueError: `ignore_iof` is above 0 and `gt_ignore` is missing.
    """
    takes_part = jnp.ones(len(anchors), bool) if anchor_valid is None else anchor_valid
    has_objects = jnp.any(gt_valid)
    candidates = takes_part
    if ignore_iof > 0:
        if gt_ignore is None:
            raise ValueError(f"ignore_iof is {ignore_iof}, so gt_ignore is needed")
        areas = _in_ignored_area(anchors, gt_boxes, gt_ignore, ignore_iof, ignore_wrt_anchors)
        candidates = candidates & ~(areas & has_objects)

    rows = anchors[None] if approximations is None else jnp.moveaxis(approximations, 1, 0)
    max_iou, matched, claimed = _scan_objects(
        rows, candidates, gt_boxes, gt_valid, min_pos_iou, all_ties, require_overlap
    )
    low, high = neg_iou if isinstance(neg_iou, (tuple, list)) else (0.0, neg_iou)
    positive = max_iou >= pos_iou
    if low_quality:
        positive |= claimed >= 0
        matched = jnp.where(claimed >= 0, claimed, matched)
    negative = (max_iou >= low) & (max_iou < high) | ~has_objects
    status = jnp.where(positive, 1, jnp.where(negative, 0, -1))
    return MaxIoU(
        status=jnp.where(candidates, status, -1).astype(jnp.int32),
        matched=matched,
        max_iou=jnp.where(candidates, max_iou, -1.0),
    )


def _scan_objects(rows, candidates, gt_boxes, gt_valid, min_pos_iou, all_ties, require_overlap):
    """Largest IoU [N], its object [N], and the last object to claim each anchor [N], -1 if none.

    The IoU of an anchor is the largest of its `rows` [A, N, 4].
    """
    positions = jnp.arange(len(candidates))

    def step(carry, gts):
        max_iou, matched, claimed = carry
        slot, box, valid = gts[0], gts[1][:, None], gts[2][:, None]  # [B], [B, 1, 4], [B, 1]
        # On a CPU, a maximum over an axis takes 2.5 times as long.
        iou = functools.reduce(jnp.maximum, [boxes_lib.iou(x, box) for x in rows])  # [B, N]
        iou = jnp.where(candidates & valid, iou, -1.0)
        # Fused separately into the maximum and into the comparison with it, the IoU may round
        # differently, and no anchor would equal the best.  The barrier makes it one array.
        iou = lax.optimization_barrier(iou)
        best = jnp.max(iou, axis=1, initial=-1.0, keepdims=True)  # [B, 1]
        claims = iou == best
        if not all_ties:
            claims = positions == jnp.argmax(claims, axis=1, keepdims=True)
        claims &= valid & (best >= min_pos_iou)
        if require_overlap:
            claims &= best > 0
        largest, first = slots.first_largest(iou, slot)
        better = largest > max_iou
        last = jnp.where(claims, slot[:, None], -1).max(0)
        return (
            jnp.where(better, largest, max_iou),
            jnp.where(better, first, matched),
            jnp.maximum(claimed, last),
        )

    zeros = jnp.zeros(len(candidates), jnp.float32)
    none = jnp.zeros(len(candidates), jnp.int32)
    gts = (jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid)
    return slots.scan(step, (zeros, none, none - 1), gts, len(candidates))


def _in_ignored_area(anchors, gt_boxes, gt_ignore, ignore_iof, wrt_anchors):
    """[N] bool: anchors that some ignored box covers by more than `ignore_iof`."""

    def step(covered, gts):
        box, ignore = gts[0][:, None], gts[1][:, None]  # [B, 1, 4], [B, 1]
        iof = boxes_lib.iof(anchors, box) if wrt_anchors else boxes_lib.iof(box, anchors)
        return covered | (ignore & (iof > ignore_iof)).any(0)

    start = jnp.zeros(len(anchors), bool)
    return slots.scan(step, start, (gt_boxes, gt_ignore), len(anchors))

"""What the two stages of an R-CNN learn from: samples of anchors and of RoIs, for one image."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from detlab.assign import max_iou, sampling

Array = Any


class RoIs(NamedTuple):
    """What a box head learns from: positives first, then negatives, then empty slots."""

    boxes: Array  # [R, 4] xyxy px, zeros in empty slots
    status: Array  # [R] int32: -1 empty, 0 background, 1 an object
    matched: Array  # [R] int32 slot of the object
    index: Array  # [R] int32 row among the proposals and, after them, the slots of objects


def sample_anchors(
    key: Array,
    anchors,
    inside,
    boxes,
    valid,
    *,
    ious: tuple[float, float, float],
    num: int,
    positive_fraction: float,
) -> max_iou.MaxIoU:
    """`max_iou.MaxIoU` of the anchors of one image; status -1 where not sampled.

    Args:
      key: of this image.
      anchors: [N, 4] xyxy px.
      inside: [N] bool; other anchors take no part.
      boxes: [G, 4] xyxy px, the objects.
      valid: [G] bool, the real ones.
      ious: an anchor is positive from the first on, negative below the second, and an object's
        best anchor is positive from the third on.
      num, positive_fraction: static, see `sampling.sample`.
    """
    pos_iou, neg_iou, min_pos_iou = ious
    assigned = max_iou.assign(
        anchors, boxes, valid, pos_iou, neg_iou, min_pos_iou, anchor_valid=inside
    )
    drawn = sampling.sample(key, assigned.status, num, positive_fraction)
    rows = jnp.where(drawn.valid, drawn.index, len(anchors))  # empty slots fall off
    taken = jnp.zeros(len(anchors), bool).at[rows].set(True, mode="drop")
    return assigned._replace(status=jnp.where(taken, assigned.status, -1))


def sample_rois(
    key: Array,
    proposals,
    there,
    boxes,
    valid,
    *,
    iou: float | Array,
    num: int,
    positive_fraction: float,
) -> RoIs:
    """A random sample of the proposals of one image and of its objects.

    Args:
      key: of this image.
      proposals: [P, 4] xyxy px.
      there: [P] bool; other rows are empty and never sampled.
      boxes: [G, 4] xyxy px, the objects.
      valid: [G] bool, the real ones.
      iou: a proposal is positive from here on, else negative.
      num, positive_fraction: static, see `sampling.sample`.
    Returns:
      RoIs with R = min(num, P + G).
    """
    assigned = max_iou.assign(
        proposals, boxes, valid, iou, iou, iou, low_quality=False, anchor_valid=there
    )
    # The objects are proposals too, each its own.  They come last: so more slots for them leave
    # the random numbers of the others, and with them the draw, as they are.
    rois = jnp.concatenate([proposals, boxes])
    status = jnp.concatenate([assigned.status, jnp.where(valid, 1, -1)])
    matched = jnp.concatenate([assigned.matched, jnp.arange(len(boxes))])
    drawn = sampling.sample(key, status, num, positive_fraction)
    return RoIs(
        boxes=jnp.where(drawn.valid[:, None], rois[drawn.index], 0.0),
        status=jnp.where(drawn.valid, drawn.positive.astype(jnp.int32), -1),
        matched=matched[drawn.index],
        index=drawn.index,
    )

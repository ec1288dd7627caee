"""Training samples of the two stages of an R-CNN, anchors and RoIs, for one image."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from detlab.assign import max_iou, sampling

Array = Any


class RoIs(NamedTuple):
    """Training samples of a box head: positives first, then negatives, then empty slots."""

    boxes: Array  # [R, 4] xyxy px, zeros in empty slots
    status: Array  # [R] int32: -1 empty, 0 background, 1 an object
    matched: Array  # [R] int32 slot of the object
    index: Array  # [R] int32 index into the proposals followed by the object slots


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
    negatives_per_positive: float | None = None,
    approximations=None,
) -> max_iou.MaxIoU:
    """`max_iou.MaxIoU` of the anchors of one image, with status -1 where not sampled.

    Args:
      key: of this image.
      anchors: [N, 4] xyxy px.
      inside: [N] bool; anchors where it is False are ignored.
      boxes: [G, 4] xyxy px, the objects.
      valid: [G] bool, the real ones.
      ious: an anchor is positive at or above the first and negative below the second; an object's
        best anchor is positive at or above the third.
      num, positive_fraction, negatives_per_positive: static, see `sampling.sample`.
      approximations: [N, A, 4] or None, see `max_iou.assign`.
    """
    assigned = max_iou.assign(
        anchors, boxes, valid, *ious, anchor_valid=inside, approximations=approximations
    )
    samples = sampling.sample(key, assigned.status, num, positive_fraction, negatives_per_positive)
    rows = jnp.where(samples.valid, samples.index, len(anchors))  # empty slots are dropped
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
    """A random sample of the proposals and objects of one image.

    Args:
      key: of this image.
      proposals: [P, 4] xyxy px.
      there: [P] bool; rows where it is False are empty.
      boxes: [G, 4] xyxy px, the objects.
      valid: [G] bool, the real ones.
      iou: a proposal is positive at or above this, else negative.
      num, positive_fraction: static, see `sampling.sample`.
    Returns:
      RoIs with R = min(num, P + G).
    """
    found = candidates(proposals, there, boxes, valid, iou)
    return drawn(found, sampling.sample(key, found.status, num, positive_fraction))


class Candidates(NamedTuple):
    """What the samples of a box head are drawn from: proposals, then the objects themselves.

    More object slots therefore change neither the random numbers of the proposals nor the draw.
    """

    boxes: Array  # [P + G, 4] xyxy px
    status: Array  # [P + G] int32: -1 empty, 0 background, 1 an object
    matched: Array  # [P + G] int32 slot of the object with the largest IoU
    max_iou: Array  # [P + G] float32, -1 in empty rows


def candidates(proposals, there, boxes, valid, iou: float | Array) -> Candidates:
    """The proposals and objects of one image, assigned; each object is matched to itself.

    Args:
      proposals: [P, 4] xyxy px.
      there: [P] bool; rows where it is False are empty.
      boxes: [G, 4] xyxy px, the objects.
      valid: [G] bool, the real ones.
      iou: a proposal is positive at or above this, else negative.
    """
    assigned = max_iou.assign(
        proposals, boxes, valid, iou, iou, iou, low_quality=False, anchor_valid=there
    )
    return Candidates(
        boxes=jnp.concatenate([proposals, boxes]),
        status=jnp.concatenate([assigned.status, jnp.where(valid, 1, -1)]),
        matched=jnp.concatenate([assigned.matched, jnp.arange(len(boxes))]),
        max_iou=jnp.concatenate([assigned.max_iou, jnp.where(valid, 1.0, -1.0)]),
    )


def drawn(found: Candidates, samples: sampling.Sampled) -> RoIs:
    """The RoIs [R] of the sampled candidates."""
    return RoIs(
        boxes=jnp.where(samples.valid[:, None], found.boxes[samples.index], 0.0),
        status=jnp.where(samples.valid, samples.positive.astype(jnp.int32), -1),
        matched=found.matched[samples.index],
        index=samples.index,
    )

"""Adaptive training sample selection (ATSS, arXiv:1912.02424, algorithm 1).

Each object sets its own IoU threshold, from the overlaps of the anchors nearest to its centre, so
the assignment has one number to choose (how many) and works for one anchor or point per cell.

Objects are handled a few at a time, see `slots`.  Memory is the distances of these to N anchors and
the candidates of all objects: with 22,400 anchors and 100 objects, 0.7 MB and 0.05 MB on a CPU.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from detlab.assign import points, slots
from detlab.ops import boxes as boxes_lib
from detlab.ops import coders

# The centre of a positive is farther than this from each side, as in the reference.
_MARGIN_PX = 0.01


def smallest_of_levels(values, slices: Sequence[slice], k: int):
    """The k smallest values of each level, in ascending order; a level of fewer gives all it has.

    Of equal values the last ones are taken first.  An object's centre can be equally far from two
    anchors; PyTorch leaves open which one the reference takes, and its recorded runs have the last.

    Args:
      values: [..., N].
      slices: of each level among the N, static (`Grid.slices`).
      k: static.
    Returns:
      (values [..., M], index among the N [..., M] int32), M = sum of min(k, Nl).
    Example:
      >>> levels = [slice(0, 3), slice(3, 4)]
      >>> values, index = smallest_of_levels(jnp.array([3.0, 1, 2, 5]), levels, k=2)
      >>> values.tolist(), index.tolist()
      ([1.0, 2.0, 5.0], [1, 2, 3])
    """
    found = []
    for level in slices:
        backwards = -values[..., level][..., ::-1]
        negative, index = lax.top_k(backwards, min(k, level.stop - level.start))
        found.append((-negative, level.stop - 1 - index))
    return tuple(jnp.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))


def assign(
    anchors,
    slices: Sequence[slice],
    gt_boxes,
    gt_valid,
    k: int = 9,
    *,
    anchor_valid=None,
) -> points.Assigned:
    """Positive and negative anchors of one image.

    The candidates of an object are the k anchors of each level whose centres are nearest to its
    own.  The mean plus the standard deviation of their IoUs (divided by n - 1, as in the reference)
    is the threshold: candidates of at least this IoU are positive if their centre is inside the
    object.  An anchor that several objects claim is matched to the one of the largest IoU (the
    first on ties).  All other anchors are negative, none is ignored.

    Args:
      anchors: [N, 4] xyxy px.
      slices: of each level among the N, static (`Grid.slices`).
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects; other boxes are never matched.
      k: static; a level with fewer valid anchors gives those it has.
      anchor_valid: [N] bool; invalid anchors are ignored and are nobody's candidates.
    Returns:
      Assigned.
    """
    takes_part = jnp.ones(len(anchors), bool) if anchor_valid is None else anchor_valid
    centers = boxes_lib.xyxy_to_cxcywh(anchors)[:, :2]  # [N, 2]

    def candidates(box):
        """Anchors [M], their IoU [M] and whether they are positive [M], of one object."""
        center = boxes_lib.xyxy_to_cxcywh(box)[:2]
        distance = jnp.square(centers - center).sum(-1)
        distance, index = smallest_of_levels(jnp.where(takes_part, distance, jnp.inf), slices, k)
        there = jnp.isfinite(distance)  # a level may have fewer than k valid anchors
        iou = boxes_lib.iou(anchors[index], box)
        inside = coders.encode_ltrb(centers[index], box).min(-1) > _MARGIN_PX
        return index, iou, there & inside & (iou >= threshold(iou, there))

    index, iou, positive = slots.each(candidates, gt_boxes, len(anchors))  # [G, M] each
    iou = jnp.where(positive & gt_valid[:, None], iou, -jnp.inf)
    return points.best_claim(iou, index, takes_part)


def threshold(iou, there):
    """The IoU from which the candidates of an object are positive: mean plus standard deviation.

    Args:
      iou: [M] IoUs of the candidates.
      there: [M] bool, the real ones; a single one is its own threshold.
    Returns:
      [].
    """
    count = there.sum()
    mean = jnp.where(there, iou, 0.0).sum() / jnp.maximum(count, 1)
    square = jnp.square(jnp.where(there, iou - mean, 0.0)).sum()
    return mean + jnp.sqrt(square / jnp.maximum(count - 1, 1))

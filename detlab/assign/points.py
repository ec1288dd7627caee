"""Assignment of points to objects: points inside (FCOS) or nearest to the centre (RepPoints).

`slots` says how many objects are compared with the points at a time, and what memory that takes; on
a CPU it is a few vectors of N points.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from detlab.assign import slots
from detlab.ops import boxes as boxes_lib

Array = Any


class Assigned(NamedTuple):
    """The assignment of each point of an image."""

    status: Array  # [N] int32: -1 ignored, 0 negative, 1 positive
    matched: Array  # [N] int32 slot of the object; 0 where not positive


def assign(
    points,
    min_reach,
    max_reach,
    gt_boxes,
    gt_valid,
    *,
    center_radius=None,
    point_valid=None,
) -> Assigned:
    """Positive points: strictly inside an object whose sides are within the reach of the level.

    FCOS, arXiv:1904.01355, section 3.  The reach is compared with the largest of the four
    distances, both ends included as in the reference.  Of several objects, a point is matched to
    the one with the smallest area (the first on ties).

    Args:
      points: [N, 2] x, y px.
      min_reach, max_reach: [N] px, limits of the level of each point (paper: m_i-1 and m_i).
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects; other boxes are never matched.
      center_radius: [N] px: points must also be closer than this to the centre of the object along
        both axes ("center sampling", arXiv:2006.09214).  None: anywhere inside.
      point_valid: [N] bool; invalid points are ignored.
    Returns:
      Assigned.
    """
    x, y = points[:, 0], points[:, 1]

    def step(carry, gts):
        best, matched = carry
        slot, box, valid = gts
        x1, y1, x2, y2 = (box[:, i, None] for i in range(4))  # [B, 1] each
        sides = x - x1, y - y1, x2 - x, y2 - y  # [B, N] each
        reach = functools.reduce(jnp.maximum, sides)
        takes = valid[:, None] & (functools.reduce(jnp.minimum, sides) > 0)
        takes &= (reach >= min_reach) & (reach <= max_reach)
        if center_radius is not None:
            off_x, off_y = jnp.abs(x - (x1 + x2) * 0.5), jnp.abs(y - (y1 + y2) * 0.5)
            takes &= jnp.maximum(off_x, off_y) < center_radius
        small = jnp.where(takes, -boxes_lib.area(box)[:, None], -jnp.inf)
        largest, first = slots.first_largest(small, slot)
        better = largest > best
        return jnp.where(better, largest, best), jnp.where(better, first, matched)

    start = jnp.full(len(points), -jnp.inf), jnp.zeros(len(points), jnp.int32)
    gts = (jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid)
    best, matched = slots.scan(step, start, gts, len(points))
    status = jnp.isfinite(best).astype(jnp.int32)
    if point_valid is not None:
        status = jnp.where(point_valid, status, -1)
    return Assigned(status, matched)


def assign_nearest(
    points,
    level,
    strides: Sequence[int],
    gt_boxes,
    gt_valid,
    *,
    scale: float = 4.0,
    num_positive: int = 1,
    point_valid=None,
) -> Assigned:
    """Positive points: the nearest to the centre of each object, on the level for its size.

    RepPoints, arXiv:1904.11490, section 3.3: a box of w x h px belongs to the level of stride
    2^floor(log2(sqrt(w h) / scale)), clipped to the first and last level.  Distances are relative
    to the sides of the object, as in the reference.  A point that several objects claim is matched
    to the nearest (the first on ties).

    Args:
      points: [N, 2] x, y px.
      level: [N] int32 level of each point.
      strides: px of each level, static, increasing.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects; other boxes are never matched.
      scale: see above.
      num_positive: static; points that an object claims, or all of its level if it has fewer.
      point_valid: [N] bool; invalid points are ignored.
    Returns:
      Assigned.
    """
    takes_part = jnp.ones(len(points), bool) if point_valid is None else point_valid
    gts = boxes_lib.xyxy_to_cxcywh(gt_boxes)
    center, size = gts[:, :2], jnp.maximum(gts[:, 2:], 1e-6)
    # Products of powers of two are exact; a logarithm could round to the wrong level.
    least_area = jnp.square(scale * jnp.asarray(strides[1:], jnp.float32))  # [L - 1]
    gt_level = (size.prod(-1)[:, None] >= least_area).sum(-1)  # [G]

    def nearest(gt):
        """Squared distances [P], negative, and the points that have them, of one object."""
        center, size, own_level, valid = gt
        distance = jnp.square((points - center) / size).sum(-1)
        possible = valid & takes_part & (level == own_level)
        return lax.top_k(jnp.where(possible, -distance, -jnp.inf), min(num_positive, len(points)))

    closeness, index = slots.each(nearest, (center, size, gt_level, gt_valid), len(points))
    return best_claim(closeness, index, takes_part)


def best_claim(value, index, takes_part) -> Assigned:
    """Matches each point to the object of the largest value that claims it (the first on ties).

    Args:
      value: [G, P] of the claims of each object, -inf where there is none.
      index: [G, P] int32, the points that it claims; a point appears once in a row.
      takes_part: [N] bool; other points are ignored.
    Returns:
      Assigned; a point that no object claims is negative.
    """
    count = len(value)
    # Computed twice, in the maximum and in the comparison with it, values may round differently.
    value = lax.optimization_barrier(value)
    best = jnp.full(len(takes_part), -jnp.inf).at[index].max(value)  # [N]
    slot = jnp.arange(count, dtype=jnp.int32)[:, None]
    winner = jnp.where((value > -jnp.inf) & (value == best[index]), slot, count)
    matched = jnp.full(len(takes_part), count, jnp.int32).at[index].min(winner)
    found = matched < count
    return Assigned(
        status=jnp.where(takes_part, found.astype(jnp.int32), -1),
        matched=jnp.where(found, matched, 0),
    )


def centerness(distances):
    """How close each point is to the centre of its object (FCOS, eq. 3).

    Args:
      distances: [..., 4] left, top, right, bottom, in any unit.
    Returns:
      [...] 1 at the centre, 0 on a side and outside.
    """
    ratio = jnp.ones(distances.shape[:-1], distances.dtype)
    for low, high in ((0, 2), (1, 3)):
        near = jnp.minimum(distances[..., low], distances[..., high])
        far = jnp.maximum(distances[..., low], distances[..., high])
        ratio *= jnp.maximum(near, 0.0) / jnp.where(far > 0, far, 1.0)
    return jnp.sqrt(ratio)

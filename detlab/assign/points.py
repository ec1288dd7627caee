"""Assignment of points to the objects around them (FCOS, arXiv:1904.01355, section 3).

Objects are scanned one after another with a running minimum of the area over the points, so that
memory is a few vectors of N points, whatever the number of objects.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from detlab.ops import boxes as boxes_lib
from detlab.ops import coders

Array = Any


class Inside(NamedTuple):
    """What each point of an image learns."""

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
):
    """Positive points: those strictly inside an object whose sides lie within the level's reach.

    The reach is compared with the largest of the four distances, both ends included as in the
    reference.  Of several objects a point learns that of the smallest area, the first of equals.

    Args:
      points: [N, 2] x, y px.
      min_reach, max_reach: [N] px, for each point those of its level (paper: m_i-1 and m_i).
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects; no other box is ever matched.
      center_radius: [N] px: points have to be closer than that to the centre of the object too,
        along both axes ("center sampling", arXiv:2006.09214).  None: anywhere inside.
      point_valid: [N] bool; other points are ignored.
    Returns:
      Inside.
    """

    def step(carry, gt):
        smallest, matched = carry
        slot, box, valid = gt
        distances = coders.encode_ltrb(points, box)  # [N, 4]
        reach = distances.max(-1)
        inside = distances.min(-1) > 0
        if center_radius is not None:
            offset = jnp.abs(points - boxes_lib.xyxy_to_cxcywh(box)[:2]).max(-1)
            inside &= offset < center_radius
        area = boxes_lib.area(box)
        takes = valid & inside & (reach >= min_reach) & (reach <= max_reach) & (area < smallest)
        return (jnp.where(takes, area, smallest), jnp.where(takes, slot, matched)), None

    start = jnp.full(len(points), jnp.inf), jnp.zeros(len(points), jnp.int32)
    gts = (jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid)
    (smallest, matched), _ = lax.scan(step, start, gts)
    status = jnp.isfinite(smallest).astype(jnp.int32)
    if point_valid is not None:
        status = jnp.where(point_valid, status, -1)
    return Inside(status, matched)


def centerness(distances):
    """How near to the middle of its object a point is (FCOS, eq. 3).

    Args:
      distances: [..., 4] left, top, right, bottom, in any unit.
    Returns:
      [...] 1 in the middle, 0 on a side and outside.
    """
    ratio = jnp.ones(distances.shape[:-1], distances.dtype)
    for low, high in ((0, 2), (1, 3)):
        near = jnp.minimum(distances[..., low], distances[..., high])
        far = jnp.maximum(distances[..., low], distances[..., high])
        ratio *= jnp.maximum(near, 0.0) / jnp.where(far > 0, far, 1.0)
    return jnp.sqrt(ratio)

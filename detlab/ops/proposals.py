"""Proposals from the maps of a region proposal network (arXiv:1506.01497, 3.1), for one image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from detlab.ops import candidates, coders
from detlab.ops import nms as nms_lib

Array = Any


class Proposals(NamedTuple):
    """The proposals of an image, best first; empty rows come last and hold zeros."""

    boxes: Array  # [P, 4] xyxy px, clipped to the image
    scores: Array  # [P]
    valid: Array  # [P] bool


def propose(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[Array],
    inside: Sequence[Array],
    image_size: Array,
    *,
    per_level: int,
    num_proposals: int,
    nms_iou: float,
    delta_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Proposals:
    """Proposals of one image: the best anchors of each level, NMS per level, then the best of all.

    Args:
      logits: [Nl] for each level.
      deltas: [Nl, 4] for each level.
      anchors: [Nl, 4] xyxy px, for each level.
      inside: [Nl] bool for each level; anchors where it is False lie on padding and are dropped.
      image_size: [2] height, width px; boxes are clipped to it and dropped if no area is left.
      per_level: static; how many of the best-scoring anchors of each level are used.
      num_proposals: static, P.
      nms_iou: IoU threshold of the NMS.
      delta_stds: `stds` of `coders.decode_deltas`.
    Example:
      One level of three anchors: the first suppresses the second, the third is clipped.
      >>> anchors = [jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 3], [6, 0, 10, 4]])]
      >>> maps = [jnp.array([2.0, 1, 0])], [jnp.zeros((3, 4))], anchors, [jnp.ones(3, bool)]
      >>> size, settings = jnp.array([4, 8]), dict(per_level=3, num_proposals=3, nms_iou=0.5)
      >>> propose(*maps, size, **settings).boxes.tolist()
      [[0.0, 0.0, 4.0, 4.0], [6.0, 0.0, 8.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
    """
    rows = []
    most = min(per_level, max(len(level) for level in logits))
    for level in zip(logits, deltas, anchors, inside, strict=True):
        rows.append(_best(*level, image_size, most, per_level, delta_stds))
    boxes, scores, valid = (jnp.stack(parts) for parts in zip(*rows, strict=True))  # [L, most, ...]

    def one_level(boxes, scores, valid):
        kept, keep = nms_lib.nms(boxes, scores, valid, nms_iou, most)
        return boxes[kept], jnp.where(keep, scores[kept], -1.0)

    boxes, scores = jax.vmap(one_level)(boxes, scores, valid)
    boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
    empty = max(num_proposals - len(scores), 0)
    scores, best = lax.top_k(scores, min(num_proposals, len(scores)))
    valid = scores >= 0
    boxes = jnp.where(valid[:, None], boxes[best], 0.0)
    scores = jnp.where(valid, scores, 0.0)
    return Proposals(
        jnp.pad(boxes, ((0, empty), (0, 0))),
        jnp.pad(scores, (0, empty)),
        jnp.pad(valid, (0, empty)),
    )


def _best(logits, deltas, anchors, inside, image_size, most, per_level, delta_stds):
    """Boxes [most, 4], scores and valid of the best anchors of one level, padded."""
    scores = jnp.where(inside, jax.nn.sigmoid(logits), -1.0)
    scores, index = lax.top_k(scores, min(per_level, len(scores)))
    boxes = coders.decode_deltas(
        anchors[index], deltas[index], stds=delta_stds, max_size=image_size
    )
    valid = (scores >= 0) & candidates.usable(boxes)
    empty = most - len(scores)
    return (
        jnp.pad(boxes, ((0, empty), (0, 0))),
        jnp.pad(scores, (0, empty)),
        jnp.pad(valid, (0, empty)),
    )

"""Score voting: a kept box becomes the mean of those around it (PAA, arXiv:2007.08103, 3.3)."""

import jax.numpy as jnp
from jax import lax

from detlab import types
from detlab.ops import boxes as boxes_lib

_LEAST_IOU = 0.01  # boxes that overlap less do not vote, as in the reference
_AT_ONCE = 16  # kept boxes: 16 K overlaps in memory


def vote(kept: types.Detections, candidates: types.Detections, sigma: float = 0.025):
    """The boxes of one image after voting.

    Every candidate of a kept box's class that overlaps it votes for its own coordinates, with the
    weight score * exp(-(1 - IoU)^2 / sigma).  Scores and labels stay.

    Args:
      kept: [K] detections after suppression; empty ones keep their boxes.
      candidates: [N] detections before suppression; invalid ones do not vote.
      sigma: the paper's sigma_t; a small one lets only the nearest boxes vote.
    Returns:
      [K, 4] xyxy px.
    Example:
      A box and another of half its score, 2 px to the right: weights 1 and 0.5 * exp(-0.1).
      >>> boxes = jnp.array([[0.0, 0, 38, 10], [2, 0, 40, 10]])
      >>> scores, label, valid = jnp.array([1.0, 0.5]), jnp.zeros(2, int), jnp.ones(2, bool)
      >>> found = types.Detections(boxes, scores, label, valid)
      >>> best = types.Detections(*(x[:1] for x in found))
      >>> [round(float(x), 2) for x in vote(best, found, sigma=0.1)[0]]
      [0.62, 0.0, 38.62, 10.0]
    """

    def of_box(row):
        box, label, valid = row
        iou = boxes_lib.iou(candidates.boxes, box)  # [N]
        votes = candidates.valid & (candidates.labels == label) & (iou > _LEAST_IOU) & valid
        weight = jnp.exp(-jnp.square(1 - iou) / sigma) * candidates.scores
        weight = jnp.where(votes, weight, 0.0)
        total = weight.sum()
        voted = (weight[:, None] * candidates.boxes).sum(0) / jnp.where(total > 0, total, 1.0)
        return jnp.where(total > 0, voted, box)

    rows = kept.boxes, kept.labels, kept.valid
    return lax.map(of_box, rows, batch_size=_AT_ONCE)

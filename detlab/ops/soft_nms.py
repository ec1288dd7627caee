"""Soft non-maximum suppression (arXiv:1704.04503): overlaps lower scores instead of dropping boxes.

Each step takes the best remaining box and lowers the scores of the boxes that overlap it.  Later
steps change nothing about earlier ones, so the loop has as many steps as outputs, and each costs
one row of IoUs.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from detlab.ops import boxes as boxes_lib
from detlab.ops import nms as nms_lib

_METHODS = ("linear", "gaussian", "naive")


def soft_nms(
    boxes,
    scores,
    valid,
    max_outputs: int,
    labels=None,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
):
    """Boxes in the order in which they are taken, and their lowered scores.

    Each box that is taken multiplies the scores of the remaining boxes of its class by
      "linear"    1 - IoU where IoU >= iou_threshold (section 3 of the paper, first formula),
      "gaussian"  exp(-IoU^2 / sigma) (second formula),
      "naive"     0 where IoU >= iou_threshold: plain NMS, except that `nms` drops only above it.

    Args:
      boxes: [N, 4] xyxy px, of one image.
      scores: [N] float, >= 0; of equal scores, the first box is taken.
      valid: [N] bool; invalid boxes are never taken.
      max_outputs: K, static; may be larger than N.
      labels: [N] int; if given, boxes only lower scores of their own class.
      method: see above; static.
      iou_threshold, sigma: see above.
      min_score: boxes below it are dropped, at the start or once their score falls below it.  (The
        reference keeps the best box of an image whatever its score.)
    Returns:
      (indices [K] int32, 0 in empty slots; scores [K] float32, descending, 0 in empty slots;
      keep [K] bool, the filled slots, which come first).
    Raises:
      ValueError: `boxes` is not [N, 4], `max_outputs` is below 1, or `method` is unknown.
    Example:
      The second box is half of the first (IoU 0.5): 0.75 becomes 0.375, below the third's score.
      >>> boxes = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6]])
      >>> found = soft_nms(boxes, jnp.array([1.0, 0.75, 0.5]), jnp.ones(3, bool), 3)
      >>> [values.tolist() for values in found]
      [[0, 2, 1], [1.0, 0.5, 0.375], [True, True, True]]
    """
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [N, 4], not {boxes.shape}")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be at least 1, not {max_outputs}")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, not {method!r}")
    if len(boxes) == 0:
        empty = jnp.zeros(max_outputs)
        return empty.astype(jnp.int32), empty, empty.astype(bool)
    scores = jnp.asarray(scores, jnp.float32)
    labels = jnp.zeros(len(boxes), jnp.int32) if labels is None else jnp.asarray(labels)
    columns = jnp.asarray(boxes, jnp.float32).T  # each coordinate contiguous, as in nms.py
    positions = jnp.arange(len(boxes))

    def factors(overlaps):
        if method == "gaussian":
            return jnp.exp(-(overlaps**2) / sigma)
        lowered = 1 - overlaps if method == "linear" else 0.0
        return jnp.where(overlaps >= iou_threshold, lowered, 1.0)

    def take_best(state, _):
        scores, alive = state
        best = jnp.argmax(jnp.where(alive, scores, -jnp.inf)).astype(jnp.int32)
        taken = best, scores[best], alive[best]
        overlaps = boxes_lib.iou(columns[:, best], columns.T)  # [N]
        scores = jnp.where(labels == labels[best], scores * factors(overlaps), scores)
        return (scores, alive & (scores >= min_score) & (positions != best)), taken

    steps = min(max_outputs, len(boxes))
    alive = jnp.asarray(valid) & (scores >= min_score)
    _, (indices, taken_scores, keep) = lax.scan(take_best, (scores, alive), length=steps)
    empty = (0, max_outputs - steps)
    indices, taken_scores = jnp.where(keep, indices, 0), jnp.where(keep, taken_scores, 0.0)
    return jnp.pad(indices, empty), jnp.pad(taken_scores, empty), jnp.pad(keep, empty)


def suppress(boxes, scores, labels, valid, max_outputs: int, **settings: Any):
    """The detections of one image after class-aware soft-NMS.

    Args:
      boxes: [N, 4] xyxy px.
      scores: [N].
      labels: [N] int.
      valid: [N] bool.
      max_outputs: K, static.
      **settings: method, iou_threshold, sigma and min_score of `soft_nms`.
    Returns:
      (boxes [K, 4], lowered scores [K], labels [K], valid [K] bool), sorted by score; empty rows
      come last and hold zeros.
    Example:
      Only the second box has the class of the first, and only its score falls.
      >>> boxes = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 1]])
      >>> scores, labels = jnp.array([1.0, 0.75, 0.5]), jnp.array([3, 3, 7])
      >>> out = suppress(boxes, scores, labels, jnp.ones(3, bool), max_outputs=3)
      >>> out[1].tolist(), out[2].tolist()
      ([1.0, 0.5, 0.375], [3, 7, 3])
    """
    indices, scores, keep = soft_nms(boxes, scores, valid, max_outputs, labels, **settings)
    return nms_lib.take(boxes, indices, keep), scores, nms_lib.take(labels, indices, keep), keep

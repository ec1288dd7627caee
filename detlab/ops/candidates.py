"""Selects the candidates for suppression from scores and boxes.

`level_scores` takes a batch; the other functions take one image.
"""

import jax
import jax.numpy as jnp
from jax import lax

from detlab import types
from detlab.ops import anchors


def level_scores(grid: anchors.Grid, logits, image_size):
    """Class scores of a batch, level by level; 0 in cells that hold only padding.

    Args:
      grid: of the maps.
      logits: for each level, [B, Hl, Wl, A * C].
      image_size: [B, 2] int32 height, width px of the content.
    Returns:
      For each level, [B, Nl, C] sigmoids.
    Example:
      >>> grid = anchors.grid((8, 16), strides=(8,))  # two cells, the second one padding
      >>> level_scores(grid, [jnp.zeros((1, 1, 2, 1))], jnp.array([[8, 8]]))[0].tolist()
      [[[0.5], [0.0]]]
    """
    inside = jax.vmap(grid.inside)(image_size)  # [B, N]
    levels = []
    for level, part in zip(logits, grid.slices(), strict=True):
        scores = jax.nn.sigmoid(level.reshape(len(level), part.stop - part.start, -1))
        levels.append(jnp.where(inside[:, part, None], scores, 0.0))
    return levels


def best_pairs(scores, count: int):
    """The highest-scoring pairs of a row and a class, best first.

    Args:
      scores: [N, C].
      count: the most pairs to return, static.
    Returns:
      (scores [K], row [K], label [K] int32), K = min(count, N * C).
    Example:
      >>> scores, row, label = best_pairs(jnp.array([[0.25, 1.0], [0.75, 0.5]]), count=3)
      >>> scores.tolist(), row.tolist(), label.tolist()
      ([1.0, 0.75, 0.5], [0, 1, 1], [1, 0, 1])
    """
    classes = scores.shape[-1]
    best, pair = lax.top_k(scores.reshape(-1), min(count, scores.size))
    return best, pair // classes, (pair % classes).astype(jnp.int32)


def level_pairs(levels, count: int):
    """`best_pairs` of each level, concatenated; rows are counted across all levels.

    Args:
      levels: for each level, [Nl, C] scores.
      count: the most pairs of each level, static.
    Returns:
      (scores, row, label), each [sum of min(count, Nl * C) over the levels].
    Example:
      >>> levels = [jnp.array([[0.25], [0.75]]), jnp.array([[0.5]])]
      >>> scores, row, label = level_pairs(levels, count=1)
      >>> scores.tolist(), row.tolist(), label.tolist()
      ([0.75, 0.5], [1, 2], [0, 0])
    """
    found, start = [], 0
    for scores in levels:
        best, row, label = best_pairs(scores, count)
        found.append((best, row + start, label))
        start += len(scores)
    return tuple(jnp.concatenate(parts) for parts in zip(*found, strict=True))


def usable(boxes):
    """Marks boxes [K, 4] that are finite and have an area: [K] bool.

    Clipping can leave a box without area.

    Example:
      >>> usable(jnp.array([[0, 0, 2, 2], [2, 0, 2, 2], [0, 0, jnp.inf, 2]])).tolist()
      [True, False, False]
    """
    return (boxes[:, 2:] > boxes[:, :2]).all(-1) & jnp.isfinite(boxes).all(-1)


def above(threshold: float, boxes, scores, label) -> types.Detections:
    """Detections of one image; boxes that are usable and score above the threshold are valid.

    Args:
      threshold: of the scores.
      boxes: [K, 4] xyxy px.
      scores: [K].
      label: [K] int32.
    Example:
      >>> boxes = jnp.array([[0, 0, 2, 2], [0, 0, 2, 2], [2, 0, 2, 2]])
      >>> above(0.5, boxes, jnp.array([0.9, 0.1, 0.9]), jnp.zeros(3, int)).valid.tolist()
      [True, False, False]
    """
    return types.Detections(boxes, scores, label, (scores > threshold) & usable(boxes))

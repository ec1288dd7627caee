"""Refines corners of boxes with a heatmap of corners (RepPoints V2, arXiv:2007.08508)."""

from collections.abc import Sequence

import jax.numpy as jnp

from detlab.ops import anchors as anchors_lib


def refine(grid: anchors_lib.Grid, boxes, scores: Sequence, offsets: Sequence):
    """Moves the corners of boxes to peaks of the heatmaps, on all levels but the first.

    As in the reference, a heatmap serves the two levels above it: that of P3 moves the boxes of P4
    and P5, that of P4 those of P6 and P7.

    Args:
      grid: of the points that the boxes belong to, one each.
      boxes: [N, 4] xyxy px.
      scores: of each level, [Hl, Wl, 2]: heat of top left and bottom right corners.
      offsets: of each level, [Hl, Wl, 4], x, y of either kind, as in `move_to_peaks`.
    Returns:
      [N, 4] xyxy px, not clipped.
    Example:
      The box of the second level moves to the best of the four cells around each corner.
      >>> grid = anchors_lib.grid((16, 16), strides=(8, 16))
      >>> boxes = jnp.zeros((5, 4)).at[4].set(jnp.array([1.0, 1, 9, 9]))
      >>> scores = jnp.zeros((2, 2, 2)).at[0, 0, 0].set(1.0).at[1, 1, 1].set(1.0)
      >>> offsets = [jnp.zeros((2, 2, 4)), jnp.zeros((1, 1, 4))]
      >>> refine(grid, boxes, [scores, jnp.zeros((1, 1, 2))], offsets)[4].tolist()
      [0.0, 0.0, 8.0, 8.0]
    """
    first, *others = grid.slices()
    parts = [boxes[first]]
    for level, part in enumerate(others, start=1):
        source = (level - 1) // 2
        top_left, bottom_right = (
            move_to_peaks(
                boxes[part, 2 * i : 2 * i + 2],
                scores[source][..., i],
                offsets[source][..., 2 * i : 2 * i + 2],
                grid.strides[source],
            )
            for i in range(2)
        )
        parts.append(jnp.concatenate([top_left, bottom_right], axis=-1))
    return jnp.concatenate(parts)


def move_to_peaks(points, scores, offsets, stride: float):
    """Moves each point to the best of the four cells that surround it, plus the offset there.

    Args:
      points: [N, 2] x, y px.
      scores: [H, W]; of equal scores the first cell by rows is taken.
      offsets: [H, W, 2] x, y of the corner from the point of each cell, in cells.
      stride: px of a cell; the point of cell (row, column) is (column, row) * stride.
    Returns:
      [N, 2] x, y px.  Points outside the map move to the cells nearest to them.
    Example:
      >>> scores, offsets = jnp.array([[0.1, 0.2], [0.9, 0.3]]), jnp.full((2, 2, 2), 0.25)
      >>> move_to_peaks(jnp.array([[5.0, 7.0]]), scores, offsets, stride=8).tolist()
      [[2.0, 10.0]]
    """
    height, width = scores.shape
    last = jnp.array([width, height]) - 1
    low = jnp.floor(points / stride).astype(jnp.int32)
    low = jnp.clip(low, 0, jnp.maximum(last - 1, 0))  # [N, 2] column, row of the first cell
    high = jnp.minimum(low + 1, last)
    rows = jnp.stack([low[:, 1], low[:, 1], high[:, 1], high[:, 1]], axis=-1)  # [N, 4]
    columns = jnp.stack([low[:, 0], high[:, 0], low[:, 0], high[:, 0]], axis=-1)
    cells = rows * width + columns
    best = jnp.argmax(scores.reshape(-1)[cells], axis=-1)  # [N]
    cell = jnp.take_along_axis(cells, best[:, None], axis=-1)[:, 0]
    there = jnp.stack([cell % width, cell // width], axis=-1)
    return (there + offsets.reshape(-1, 2)[cell]) * stride

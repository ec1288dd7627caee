"""Pairs corners into boxes: CornerNet (arXiv:1808.01244), CentripetalNet (arXiv:2003.09119).

Each top left corner is paired with each bottom right corner, [K, K] pairs.  A pair is a box if
both corners have the same class, the bottom right one lies below and to the right of the top left
one, and the network says that they agree: by similar embeddings in CornerNet, by the centres they
point to in CentripetalNet.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from detlab.ops import heatmaps

Array = Any

# CentripetalNet's central region (section 4.1): its sides relative to those of the box, for boxes
# larger than the area and for all others.
_LARGE_AREA = 3500.0  # px^2
_LARGE_REGION, _SMALL_REGION = 1 / 2.1, 1 / 2.4


class Corners(NamedTuple):
    """Corners of one kind in one image, best first; empty slots come last."""

    cells: Array  # [K] int32, row * W + column: the index into other maps
    points: Array  # [K, 2] float32 x, y px
    labels: Array  # [K] int32
    scores: Array  # [K] float32
    valid: Array  # [K] bool


def find_corners(scores, offsets, max_corners: int, cell_size, kernel: int = 3) -> Corners:
    """The best corners of a heatmap.

    Args:
      scores: [H, W, C] after the sigmoid.
      offsets: [H, W, 2] x, y of the corner relative to its cell, in cells.
      max_corners: K, static.
      cell_size: [] or [2] x, y px: the sides of the network's input divided by those of the map,
        not exactly the stride (511 / 128).
      kernel: as in `heatmaps.find_peaks`.
    Returns:
      The corners, not clipped to the image.
    Example:
      >>> scores, offsets = jnp.array([[[0.1], [0.9]]]), jnp.array([[[0.0, 0.0], [0.5, 0.25]]])
      >>> find_corners(scores, offsets, max_corners=1, cell_size=4).points.tolist()
      [[6.0, 1.0]]
    """
    peaks = heatmaps.find_peaks(scores, max_corners, kernel)
    width = max(scores.shape[1], 1)
    columns_rows = jnp.stack([peaks.cells % width, peaks.cells // width], axis=-1)
    points = columns_rows + heatmaps.take_cells(offsets, peaks.cells)  # [K, 2]
    points = points.astype(jnp.float32) * jnp.asarray(cell_size, jnp.float32)
    return Corners(peaks.cells, points, peaks.labels, peaks.scores, peaks.valid)


def tags_agree(top_left_tags, bottom_right_tags, threshold: float):
    """CornerNet: marks the pairs whose embeddings are at most `threshold` apart.

    Args:
      top_left_tags: [K].
      bottom_right_tags: [K].
      threshold: the largest distance.
    Returns:
      [K, K] bool, one row for each top left corner.
    Example:
      >>> tags_agree(jnp.array([1.0, 3.0]), jnp.array([3.2, 0.9]), threshold=0.5).tolist()
      [[False, True], [True, False]]
    """
    return jnp.abs(top_left_tags[:, None] - bottom_right_tags) <= threshold


def centers_agree(
    top_left: tuple[Array, Array], bottom_right: tuple[Array, Array], threshold: float
):
    """CentripetalNet (section 3.1): marks pairs whose corners both point to the middle of the box.

    Args:
      top_left: (points [K, 2], centers [K, 2]) px: the corners, and the centres they point to.
      bottom_right: the same for the bottom right corners.
      threshold: the largest area between the two centres, relative to the area of the box's
        central region.
    Returns:
      [K, K] bool: both centres lie inside the central region, and close enough together.
    Example:
      >>> top_left = jnp.array([[10.0, 10.0]]), jnp.array([[30.0, 20.0]])
      >>> bottom_right = jnp.array([[50.0, 30.0]]), jnp.array([[30.0, 20.0]])
      >>> centers_agree(top_left, bottom_right, threshold=0.5).tolist()
      [[True]]
    """
    (low, low_centers), (high, high_centers) = top_left, bottom_right
    low, low_centers = low[:, None], low_centers[:, None]  # [K, 1, 2]; with [K, 2]: [K, K, 2]
    area = jnp.abs(jnp.prod(high - low, axis=-1))  # [K, K]
    share = jnp.where(area > _LARGE_AREA, _LARGE_REGION, _SMALL_REGION)[..., None]
    middle, half = (low + high) / 2, share * (high - low) / 2

    def inside(points):
        return jnp.all((points > middle - half) & (points < middle + half), axis=-1)

    between = jnp.abs(jnp.prod(high_centers - low_centers, axis=-1))
    region = jnp.abs(jnp.prod(2 * half, axis=-1))
    return inside(low_centers) & inside(high_centers) & (between <= threshold * region)


def possible_pairs(top_left: Corners, bottom_right: Corners, agree):
    """Pairs of one class that agree, with the bottom right corner below and right of the top left.

    Args:
      top_left: of one image.
      bottom_right: of the same image.
      agree: [K, K] bool, one row for each top left corner.
    Returns:
      [K, K] bool; False for invalid corners.
    Example:
      >>> label, score, valid = jnp.array([0]), jnp.array([0.75]), jnp.array([True])
      >>> low = Corners(jnp.array([0]), jnp.array([[1.0, 2.0]]), label, score, valid)
      >>> high = low._replace(points=jnp.array([[5.0, 8.0]]))
      >>> agree = jnp.array([[True]])
      >>> possible_pairs(low, high, agree).item(), possible_pairs(high, low, agree).item()
      (True, False)
    """
    possible = agree & top_left.valid[:, None] & bottom_right.valid
    possible &= top_left.labels[:, None] == bottom_right.labels
    return possible & jnp.all(bottom_right.points > top_left.points[:, None], axis=-1)


def pair_corners(top_left: Corners, bottom_right: Corners, agree, max_boxes: int):
    """The best boxes among all pairs of corners.

    Args:
      top_left: of one image.
      bottom_right: of the same image.
      agree: [K, K] bool, one row for each top left corner.
      max_boxes: M, static; may be larger than K * K.
    Returns:
      (boxes [M, 4] xyxy px, scores [M], labels [M], valid [M] bool), sorted by score, which is the
      mean of the two corners' scores; invalid rows come last and hold zeros.
    Raises:
      ValueError: `max_boxes` is below 1.
    Example:
      >>> label, score, valid = jnp.array([0]), jnp.array([0.75]), jnp.array([True])
      >>> low = Corners(jnp.array([0]), jnp.array([[1.0, 2.0]]), label, score, valid)
      >>> high = low._replace(points=jnp.array([[5.0, 8.0]]), scores=jnp.array([0.25]))
      >>> boxes, scores, _, _ = pair_corners(low, high, jnp.array([[True]]), max_boxes=2)
      >>> boxes.tolist(), scores.tolist()
      ([[1.0, 2.0, 5.0, 8.0], [0.0, 0.0, 0.0, 0.0]], [0.5, 0.0])
    """
    if max_boxes < 1:
        raise ValueError(f"max_boxes must be at least 1, not {max_boxes}")
    accepted = possible_pairs(top_left, bottom_right, agree)
    scores = (top_left.scores[:, None] + bottom_right.scores) / 2  # [K, K]
    candidates = jnp.where(accepted, scores, -jnp.inf).ravel()
    scores, pairs = lax.top_k(candidates, min(max_boxes, candidates.size))
    rows, columns = jnp.divmod(pairs, len(bottom_right.scores))
    boxes = jnp.concatenate([top_left.points[rows], bottom_right.points[columns]], axis=-1)
    labels, valid = top_left.labels[rows], scores > -jnp.inf
    empty = max_boxes - len(pairs)

    def padded(values):
        kept = jnp.where(valid.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
        return jnp.pad(kept, [(0, empty)] + [(0, 0)] * (values.ndim - 1))

    return padded(boxes), padded(scores), padded(labels), jnp.pad(valid, (0, empty))

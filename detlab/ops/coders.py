"""Box coders: from boxes to what a regression branch predicts, and back.

Each `encode_*` has a matching `decode_*`.  Arrays broadcast over leading axes: predictions for
each class take anchors [N, 1, 4].  A box or anchor without extent along an axis is encoded as if
it were 1 px long there, so padding stays finite and a masked loss has finite gradients.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from detlab.ops import boxes as boxes_lib
from detlab.ops import gradient

Array = Any

# The largest change of size: from a 16 px anchor to a 1000 px box, or the reverse (Detectron).
MAX_LOG_RATIO = abs(math.log(16 / 1000))

POINT_TRANSFORMS = ("moment", "minmax", "partial_minmax")


def encode_deltas(
    anchors,
    boxes,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
):
    """Normalised offsets from anchors to boxes (R-CNN, arXiv:1311.2524, appendix C, eq. 6-9).

    Args:
      anchors: [..., 4] xyxy px.
      boxes: [..., 4] xyxy px.
      stds: divisors of dx, dy, dw, dh.
      means: subtracted before the division.
    Returns:
      [..., 4] dx, dy in anchor sizes; dw, dh natural logarithms of the size ratios; normalised.
    Example:
      >>> anchor, box = jnp.array([0.0, 0.0, 10.0, 20.0]), jnp.array([5.0, 0.0, 25.0, 20.0])
      >>> [round(float(x), 3) for x in encode_deltas(anchor, box)]  # 10 px right, twice as wide
      [1.0, 0.0, 0.693, 0.0]
    """
    anchors, boxes = boxes_lib.xyxy_to_cxcywh(anchors), boxes_lib.xyxy_to_cxcywh(boxes)
    size = _nonzero(anchors[..., 2:])
    offset = (boxes[..., :2] - anchors[..., :2]) / size
    log_ratio = jnp.log(_nonzero(boxes[..., 2:]) / size)
    deltas = jnp.concatenate([offset, log_ratio], axis=-1)
    return (deltas - jnp.asarray(means, deltas.dtype)) / jnp.asarray(stds, deltas.dtype)


def decode_deltas(
    anchors,
    deltas,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    max_size=None,
    max_log_ratio: float = MAX_LOG_RATIO,
):
    """Boxes from the offsets of `encode_deltas`.

    Args:
      anchors: [..., 4] xyxy px.
      deltas: [..., 4] normalised.
      stds: as in `encode_deltas`.
      means: as in `encode_deltas`.
      max_size: [2] height, width px, static or traced; clips the boxes if given.
      max_log_ratio: bound of |dw| and |dh| after the stds; keeps the exponential from overflowing.
    Returns:
      [..., 4] xyxy px.
    Example:
      >>> anchor, deltas = jnp.array([0.0, 0.0, 10.0, 20.0]), jnp.array([1.0, 0.5, 0.0, 0.0])
      >>> decode_deltas(anchor, deltas).tolist()
      [10.0, 10.0, 20.0, 30.0]
      >>> decode_deltas(anchor, deltas, max_size=(25, 15)).tolist()
      [10.0, 10.0, 15.0, 25.0]
    """
    deltas = deltas * jnp.asarray(stds, deltas.dtype) + jnp.asarray(means, deltas.dtype)
    anchors = boxes_lib.xyxy_to_cxcywh(anchors)
    center = anchors[..., :2] + deltas[..., :2] * anchors[..., 2:]
    log_ratio = jnp.clip(deltas[..., 2:], -max_log_ratio, max_log_ratio)
    size = anchors[..., 2:] * jnp.exp(log_ratio)
    return _clip(boxes_lib.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1)), max_size)


def encode_ltrb(points, boxes, max_distance: float | None = None):
    """Distances from points to the four sides (FCOS, arXiv:1904.01355, eq. 1).

    Args:
      points: [..., 2] x, y.
      boxes: [..., 4] xyxy, in the unit of the points: px, or strides if both are divided by them.
      max_distance: clips distances to 0..max_distance - 0.1, so that each has a neighbour on either
        side among the bins 0, 1 .. max_distance (GFL, arXiv:2006.04388).
    Returns:
      [..., 4] left, top, right, bottom; negative where a point is outside its box.
    Example:
      >>> encode_ltrb(jnp.array([4.0, 5.0]), jnp.array([1.0, 3.0, 10.0, 20.0])).tolist()
      [3.0, 2.0, 6.0, 15.0]
    """
    distances = jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)
    return distances if max_distance is None else jnp.clip(distances, 0.0, max_distance - 0.1)


def decode_ltrb(points, distances, max_size=None):
    """Boxes from distances to the four sides (FCOS, arXiv:1904.01355, eq. 1 inverted).

    Args:
      points: [..., 2] x, y.
      distances: [..., 4] left, top, right, bottom, in the unit of the points.
      max_size: [2] height, width in the same unit, static or traced; clips the boxes if given.
    Returns:
      [..., 4] xyxy, in the unit of the points.
    Example:
      >>> decode_ltrb(jnp.array([4.0, 5.0]), jnp.array([3.0, 2.0, 6.0, 15.0])).tolist()
      [1.0, 3.0, 10.0, 20.0]
    """
    low, high = points - distances[..., :2], points + distances[..., 2:]
    return _clip(jnp.concatenate([low, high], axis=-1), max_size)


def decode_distribution(logits):
    """The means of distributions over the whole numbers 0 .. K - 1 (GFL, arXiv:2006.04388, eq. 5).

    Args:
      logits: [..., K] before the softmax.
    Returns:
      [...] 0 .. K - 1.
    Example:
      >>> even, sure = jnp.zeros(5), jnp.array([0.0, 0.0, 0.0, 99.0, 0.0])
      >>> decode_distribution(jnp.stack([even, sure])).tolist()
      [2.0, 3.0]
    """
    numbers = jnp.arange(logits.shape[-1], dtype=logits.dtype)
    # Not a product of matrices, which accelerators compute in lower precision.
    return (jax.nn.softmax(logits) * numbers).sum(-1)


def encode_yolo(anchors, boxes, strides, eps: float = 1e-6):
    """Position in the cell and log size ratio (YOLOv3, arXiv:1804.02767, section 2.1).

    Args:
      anchors: [..., 4] xyxy px, centred in their cells.
      boxes: [..., 4] xyxy px.
      strides: [...] px.
      eps: x and y are clipped to eps..1 - eps, which a sigmoid can reach.
    Returns:
      [..., 4] x, y of the centre in 0..1 of the cell; ln(w / anchor w), ln(h / anchor h).
    Example:
      >>> anchor, box = jnp.array([2.0, 2.0, 6.0, 6.0]), jnp.array([4.0, 2.0, 8.0, 6.0])
      >>> encode_yolo(anchor, box, strides=8.0).tolist()  # 2 px right of the middle of its cell
      [0.75, 0.5, 0.0, 0.0]
    """
    anchors, boxes = boxes_lib.xyxy_to_cxcywh(anchors), boxes_lib.xyxy_to_cxcywh(boxes)
    offset = (boxes[..., :2] - anchors[..., :2]) / jnp.asarray(strides)[..., None] + 0.5
    log_ratio = jnp.log(_nonzero(boxes[..., 2:]) / _nonzero(anchors[..., 2:]))
    return jnp.concatenate([jnp.clip(offset, eps, 1 - eps), log_ratio], axis=-1)


def decode_yolo(anchors, encoded, strides):
    """Boxes from positions in the cell and log size ratios; the inverse of `encode_yolo`.

    Args:
      anchors: [..., 4] xyxy px, centred in their cells.
      encoded: [..., 4] x, y after the sigmoid; log ratios of width and height.
      strides: [...] px.
    Returns:
      [..., 4] xyxy px, not clipped.
    Example:
      >>> anchor, encoded = jnp.array([2.0, 2.0, 6.0, 6.0]), jnp.array([0.75, 0.5, 0.0, 0.0])
      >>> decode_yolo(anchor, encoded, strides=8.0).tolist()
      [4.0, 2.0, 8.0, 6.0]
    """
    anchors = boxes_lib.xyxy_to_cxcywh(anchors)
    center = anchors[..., :2] + (encoded[..., :2] - 0.5) * jnp.asarray(strides)[..., None]
    size = anchors[..., 2:] * jnp.exp(encoded[..., 2:])
    return boxes_lib.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))


class Buckets(NamedTuple):
    """SABL's targets.  Sides are left, right, top, bottom; buckets run from outside inwards."""

    offsets: Array  # [..., 4, S] from the side of the box to the bucket, in bucket sizes
    offset_weights: Array  # [..., 4, S] 1 at the nearest bucket, and at the second if close; else 0
    labels: Array  # [..., 4, S] one-hot: the nearest bucket
    label_weights: Array  # [..., 4, S] 0 at close buckets other than the nearest; else 1


def encode_buckets(
    rois, boxes, num_buckets: int, scale_factor: float, ignore_neighbors: bool = True
) -> Buckets:
    """Bucket labels and offsets of the four sides (SABL, arXiv:1912.04260, sections 3.2, 3.3).

    Args:
      rois: [..., 4] xyxy px.
      boxes: [..., 4] xyxy px, the object of each RoI.
      num_buckets: along the width and along the height; each side uses S = ceil(num_buckets / 2).
      scale_factor: the RoI, enlarged about its centre by this factor, is divided into the buckets.
      ignore_neighbors: `label_weights` is 0 at close buckets other than the nearest (section 3.2).
    Example:
      >>> roi, box = jnp.array([0.0, 0.0, 8.0, 8.0]), jnp.array([1.0, 3.0, 7.0, 8.0])
      >>> buckets = encode_buckets(roi, box, num_buckets=4, scale_factor=1.0)
      >>> buckets.labels.tolist()  # centres at 1, 3 from the left and top, 7, 5 from the others
      [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
      >>> buckets.offsets.tolist()
      [[0.0, 1.0], [0.0, -1.0], [-1.0, 0.0], [-0.5, -1.5]]
    """
    centers, size = _bucket_centers(rois, num_buckets, scale_factor)
    sides = jnp.stack(
        [boxes[..., 0], boxes[..., 2], boxes[..., 1], boxes[..., 3]], axis=-1
    )  # [..., 4] left, right, top, bottom
    offsets = (centers - sides[..., None]) / _nonzero(size)[..., None]  # [..., 4, S]
    distances = jnp.abs(offsets)
    nearest = jax.nn.one_hot(jnp.argmin(distances, axis=-1), distances.shape[-1])
    others = jnp.where(nearest > 0, jnp.inf, distances)
    second = jax.nn.one_hot(jnp.argmin(others, axis=-1), distances.shape[-1])
    close = distances < 1.0
    offset_weights = jnp.where(close, jnp.maximum(nearest, second), nearest)
    label_weights = jnp.ones_like(nearest)
    if ignore_neighbors:
        label_weights = jnp.where(close & (nearest == 0), 0.0, label_weights)
    return Buckets(offsets, offset_weights, nearest, label_weights)


def decode_buckets(rois, logits, offsets, num_buckets: int, scale_factor: float, max_size=None):
    """Boxes and localisation confidence from bucket scores (SABL, sections 3.3, 3.4).

    Args:
      rois: [..., 4] xyxy px.
      logits: [..., 4, S] of the buckets of each side.
      offsets: [..., 4, S] in bucket sizes.
      num_buckets: as in `encode_buckets`.
      scale_factor: as in `encode_buckets`.
      max_size: [2] height, width px; clips boxes to 0..size - 1, as the reference does here.
    Returns:
      (boxes [..., 4] xyxy px, confidence [...] in 0..1).  The confidence is the mean over the four
      sides of the best bucket's probability, plus that of the second best if they are neighbours.
    Example:
      >>> roi, box = jnp.array([0.0, 0.0, 8.0, 8.0]), jnp.array([1.0, 3.0, 7.0, 8.0])
      >>> buckets = encode_buckets(roi, box, 4, 1.0)
      >>> boxes, confidence = decode_buckets(roi, 100 * buckets.labels, buckets.offsets, 4, 1.0)
      >>> boxes.tolist(), round(float(confidence), 3)
      ([1.0, 3.0, 7.0, 8.0], 1.0)
    """
    centers, size = _bucket_centers(rois, num_buckets, scale_factor)
    scores = jax.nn.softmax(logits, axis=-1)
    (top, second), (best, other) = (
        jnp.moveaxis(x, -1, 0) for x in jax.lax.top_k(scores, 2)
    )  # [..., 4] each

    def at_best(values):
        return jnp.take_along_axis(values, best[..., None], axis=-1)[..., 0]

    sides = at_best(centers) - at_best(offsets) * size  # left, right, top, bottom
    boxes = jnp.stack([sides[..., 0], sides[..., 2], sides[..., 1], sides[..., 3]], axis=-1)
    if max_size is not None:
        boxes = boxes_lib.clip(boxes, max_size[0] - 1, max_size[1] - 1)
    confidence = top + jnp.where(jnp.abs(best - other) == 1, second, 0.0)
    return boxes, jnp.mean(confidence, axis=-1)


def points_to_boxes(points, transform: str, transfer=None, transfer_gradient: float = 0.01):
    """Converts point sets to boxes (RepPoints, arXiv:1904.11490, section 3.2).

    Args:
      points: [..., T, 2] x, y.
      transform:
        minmax          T1: from the smallest to the largest coordinate;
        partial_minmax  T2: the same for the first four points;
        moment          T3: a multiple of the standard deviation (divisor T - 1) to either side of
                        the mean.  It has no gradient along an axis on which all points coincide.
      transfer: [2] logarithms of the multiples along x and y; only for moment.
      transfer_gradient: factor of the gradient of `transfer`, as in the reference.
    Returns:
      [..., 4] xyxy, in the unit of the points.
    Raises:
      ValueError: unknown transform, or moment without `transfer` or with fewer than two points.
    Example:
      >>> points = jnp.array([[0.0, 0.0], [2.0, 4.0], [1.0, 1.0], [1.0, 2.0], [6.0, 2.0]])
      >>> points_to_boxes(points, "minmax").tolist()
      [0.0, 0.0, 6.0, 4.0]
      >>> points_to_boxes(points, "partial_minmax").tolist()
      [0.0, 0.0, 2.0, 4.0]
    """
    if transform not in POINT_TRANSFORMS:
        names = ", ".join(POINT_TRANSFORMS)
        raise ValueError(f"transform {transform!r} is not one of {names}")
    if transform == "moment":
        count = points.shape[-2]
        if transfer is None or count < 2:
            raise ValueError(
                f"transform 'moment' needs transfer and at least two points, not {count}"
            )
        mean = points.mean(-2)
        variance = jnp.square(points - mean[..., None, :]).sum(-2) / (count - 1)
        spread = variance > 0
        deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)
        half = deviation * jnp.exp(gradient.scale(transfer, transfer_gradient))
        low, high = mean - half, mean + half
    else:
        chosen = points[..., :4, :] if transform == "partial_minmax" else points
        low, high = chosen.min(-2), chosen.max(-2)
    return jnp.concatenate([low, high], axis=-1)


def boxes_to_grid(boxes, side: int):
    """Spreads points evenly over boxes, corners and sides included.

    Args:
      boxes: [..., 4] xyxy.
      side: points along each axis, at least 2.
    Returns:
      [..., side * side, 2] x, y, row by row, in the unit of the boxes.
    Example:
      >>> boxes_to_grid(jnp.array([0.0, 0.0, 4.0, 2.0]), side=2).tolist()
      [[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [4.0, 2.0]]
    """
    steps = jnp.linspace(0.0, 1.0, side, dtype=boxes.dtype)
    low, size = boxes[..., None, :2], (boxes[..., 2:] - boxes[..., :2])[..., None, :]
    x, y = (low[..., i] + size[..., i] * steps for i in range(2))  # [..., side] each
    x, y = jnp.broadcast_arrays(x[..., None, :], y[..., :, None])  # [..., side, side] each
    return jnp.stack([x, y], axis=-1).reshape(*boxes.shape[:-1], side * side, 2)


def _bucket_centers(rois, num_buckets, scale_factor):
    """Centres [..., 4, S] px and sizes [..., 4] px of the buckets of each side."""
    rois = boxes_lib.xyxy_to_cxcywh(rois)
    whole = rois[..., 2:] * scale_factor
    low, high = rois[..., :2] - whole / 2, rois[..., :2] + whole / 2
    steps = 0.5 + jnp.arange(-(-num_buckets // 2))  # [S]
    bucket = whole / num_buckets  # [..., 2]
    inwards = steps * bucket[..., None]  # [..., 2, S]
    from_low, from_high = low[..., None] + inwards, high[..., None] - inwards
    centers = jnp.stack(
        [from_low[..., 0, :], from_high[..., 0, :], from_low[..., 1, :], from_high[..., 1, :]],
        axis=-2,
    )
    return centers, jnp.repeat(bucket, 2, axis=-1)


def _nonzero(size):
    return jnp.where(size > 0, size, 1.0)


def _clip(boxes, max_size):
    return boxes if max_size is None else boxes_lib.clip(boxes, *max_size)

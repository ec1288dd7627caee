"""The values that pass between detlab's parts, all of them NamedTuples of arrays.

Letters for axes: B images, H W pixels, G padded ground-truth slots, K detections, M entries of an
assignment (anchors, points, RoIs).  The fields hold NumPy arrays on the host and
JAX arrays on devices, so this file imports neither.
"""

from typing import Any, NamedTuple

Array = Any


class Batch(NamedTuple):
    """What the loader yields and what every loss takes."""

    images: Array  # [B, H, W, 3] uint8 RGB; detectors also take float32 in 0..255
    boxes: Array  # [B, G, 4] float32 xyxy, px of the canvas, zero where neither valid nor ignored
    labels: Array  # [B, G] int32 in 0..C-1
    valid: Array  # [B, G] bool: a real object to learn from
    ignore: Array  # [B, G] bool: crowd (COCO) or difficult (VOC), never valid
    image_size: Array  # [B, 2] int32 height, width of the content on the canvas
    placement: Array  # [B, 4] float32 sx, sy, tx, ty: canvas xy = original xy * s + t
    index: Array  # [B] int32 position in the source; ids and file names stay on the host
    real: Array  # [B] bool: False for images that pad the last evaluation batch


class Detections(NamedTuple):
    """Boxes with scores, sorted by score; invalid rows come last and are zero."""

    boxes: Array  # [B, K, 4] float32 xyxy, px of the canvas
    scores: Array  # [B, K] float32 in 0..1
    labels: Array  # [B, K] int32 in 0..C-1
    valid: Array  # [B, K] bool


class Targets(NamedTuple):
    """One assignment of objects to entries, for a batch of images."""

    boxes: Array  # [B, M, 4] float32 px: the anchor, the point's cell or the RoI
    level: Array  # [B, M] int32 pyramid level, counted from the finest
    status: Array  # [B, M] int32: -1 ignored, 0 negative, 1 positive
    matched: Array  # [B, M] int32 slot of the object in the batch; entries may share a cell
    # What the loss compares predictions with, finite everywhere.  Arrays of entries [B, M, ...]
    # (deltas, distances, buckets) are zero where status is not 1, except those that the docstring
    # of the detector's `targets` names; maps [B, H, W, ...] (heatmaps, offsets) are meaningful in
    # every cell.
    values: dict


class TrainState(NamedTuple):
    """Everything that a step changes and a checkpoint keeps."""

    step: Array  # int32 number of updates so far
    params: Any  # the differentiated parameters
    state: Any  # every other Flax collection: batch_stats, loss_state
    opt_state: Any
    ema: Any  # moving averages {"params": ..., "state": ...}; None if not configured

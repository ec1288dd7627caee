"""Records to a `types.Batch` of NumPy arrays, and boxes on the canvas back to the original."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab import types
from detlab.data import transforms


class Loaded(NamedTuple):
    """One batch, and what was lost in making it, for the log."""

    batch: types.Batch
    dropped_boxes: int  # objects for which the batch had no slot
    skipped: tuple[str, ...]  # a sentence for each image that could not be read


def to_batch(
    records: Sequence[dict[str, Any] | None],
    canvas: tuple[int, int],
    max_boxes: int,
    pad_value: int | tuple[int, int, int],
    dtype: Any = np.uint8,
) -> types.Batch:
    """A `types.Batch` of NumPy arrays from records that fit on the canvas.

    An image with more than `max_boxes` objects keeps the largest ones, those not ignored first;
    `count_dropped` counts the others.  None in place of a record gives an empty canvas with `real`
    False.

    Args:
      records: B transformed records or None.
      canvas: (height, width) px.
      max_boxes: G, slots for objects.
      pad_value: 0..255 outside the content, one number or one for each of R, G, B.
      dtype: of the images, that of the records' images or wider.
    """
    shape = (len(records), max_boxes)
    batch = types.Batch(
        images=np.empty((len(records), *canvas, 3), dtype),
        boxes=np.zeros((*shape, 4), np.float32),
        labels=np.zeros(shape, np.int32),
        valid=np.zeros(shape, bool),
        ignore=np.zeros(shape, bool),
        image_size=np.full((len(records), 2), canvas, np.int32),
        placement=np.tile(np.array([1, 1, 0, 0], np.float32), (len(records), 1)),
        index=np.full(len(records), -1, np.int32),
        real=np.array([record is not None for record in records]),
    )
    for row, record in enumerate(records):
        if record is None:
            transforms.fill(batch.images[row], pad_value)
            continue
        record = transforms.pad(record, canvas, pad_value, out=batch.images[row])
        batch.image_size[row] = record["image_size"]
        batch.placement[row] = record["placement"]
        batch.index[row] = record["index"]
        keep = _largest(record, max_boxes)
        batch.boxes[row, : len(keep)] = record["boxes"][keep]
        batch.labels[row, : len(keep)] = record["labels"][keep]
        batch.valid[row, : len(keep)] = ~record["ignore"][keep]
        batch.ignore[row, : len(keep)] = record["ignore"][keep]
    return batch


def count_dropped(records: Sequence[dict[str, Any] | None], max_boxes: int) -> int:
    """The number of objects for which `to_batch` has no slot."""
    return sum(max(len(record["boxes"]) - max_boxes, 0) for record in records if record)


def to_original(boxes: np.ndarray, placement: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes [n, 4] from px of the canvas to px of the original image, clipped to it."""
    scale, shift = np.tile(placement[:2], 2), np.tile(placement[2:], 2)
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip((boxes - shift) / scale, 0, limits).astype(np.float32)


def _largest(record, count):
    """Ascending positions of the `count` largest objects; those not ignored come first."""
    width, height = (record["boxes"][:, 2:] - record["boxes"][:, :2]).T
    order = np.lexsort((-width * height, record["ignore"]))  # the last key decides first
    return np.sort(order[:count])

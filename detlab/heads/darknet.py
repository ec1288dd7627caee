"""What the values of a darknet head mean: boxes, objectness and classes.

The kind of a head is its `kind`, and `raw` is the input of its section:

- "yolo": x, y, w, h, objectness, classes.  A logistic gives place, objectness and classes, and an
  exponential the size, in anchors.
- "new_coords": the same values, but the convolution before has applied the logistic.  They are used
  as they are, and the size is 4 value^2 anchors.
- "gaussian": as "yolo", with an uncertainty behind each of x, y, w and h, whose logistic lowers the
  score: it is multiplied by 1 - their mean.
- "region": as "yolo", but the classes of an anchor are a softmax (`softmax`) or are used as they
  are, and anchors are in cells.

With `scale_x_y` = s the place in a cell is s value - (s - 1) / 2, except for "region".
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Array = Any


class Parts(NamedTuple):
    """Raw values by their meaning."""

    box: Array  # [..., 4] x, y, w, h
    objectness: Array  # [..., 1]
    classes: Array  # [..., C]
    uncertainty: Array | None = None  # [..., 4] of x, y, w, h


def parts(head: Any, raw: Array) -> Parts:
    """The values [..., 5 or 9 + C] of anchors by their meaning."""
    if head.kind == "gaussian":
        return Parts(raw[..., :8:2], raw[..., 8:9], raw[..., 9:], raw[..., 1:8:2])
    return Parts(raw[..., :4], raw[..., 4:5], raw[..., 5:])


def probabilities(head: Any, raw: Array) -> tuple[Array, Array]:
    """The objectness [..., 1] and the class probabilities [..., C] of anchors.

    Args:
      head: has the fields of a head of `detlab.darknet.cfg`.
      raw: [..., 5 or 9 + C].
    """
    of = parts(head, raw)
    if head.kind == "new_coords":
        return of.objectness, of.classes
    if head.kind == "region":
        classes = nn.softmax(of.classes) if head.softmax else of.classes
    else:
        classes = nn.sigmoid(of.classes)
    return nn.sigmoid(of.objectness), classes


def scores(head: Any, raw: Array, threshold: float) -> Array:
    """The score of each class, [..., C], 0 where the objectness is not above `threshold`.

    Args:
      head, raw: as in `probabilities`.
      threshold: darknet's `thresh`; "region" has none for the objectness.
    """
    objectness, classes = probabilities(head, raw)
    found = objectness * classes
    if head.kind == "gaussian":
        found *= 1 - nn.sigmoid(parts(head, raw).uncertainty).mean(-1, keepdims=True)
    return found if head.kind == "region" else jnp.where(objectness > threshold, found, 0.0)


def anchor_sizes(head: Any, shape: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Width and height [A, 2] of the head's anchors, px.

    Args:
      head: as in `probabilities`.
      shape: (Hl, Wl) cells.
      canvas: (height, width) px.
    """
    sizes = np.array([head.anchors[i] for i in head.mask], np.float32)
    stride = np.array([canvas[1] / shape[1], canvas[0] / shape[0]], np.float32)
    return sizes * stride if head.kind == "region" else sizes


def boxes(head: Any, raw: Array, canvas: tuple[int, int]) -> Array:
    """Boxes, cxcywh relative to the canvas.

    Args:
      head: as in `probabilities`.
      raw: [B, Hl, Wl, A, 5 or 9 + C].
      canvas: (height, width) px.
    Returns:
      [B, Hl, Wl, A, 4].
    """
    rows, columns = raw.shape[1:3]
    box = parts(head, raw).box
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)[:, :, None]
    anchors = anchor_sizes(head, (rows, columns), canvas) / np.array(canvas[::-1], np.float32)
    if head.kind == "new_coords":
        place, growth = box[..., :2], 4 * jnp.square(box[..., 2:])
    else:
        place, growth = nn.sigmoid(box[..., :2]), jnp.exp(box[..., 2:])
    if head.kind != "region":
        place = head.scale_x_y * place - 0.5 * (head.scale_x_y - 1)
    centre = (cells + place) / np.array([columns, rows], np.float32)
    return jnp.concatenate([centre, growth * anchors], axis=-1)

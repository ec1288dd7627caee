"""What the values of a darknet head mean: boxes, objectness and classes.

The kind of a head is its `kind`, and `raw` is the input of its section:

- "yolo": x, y, w, h, objectness, classes.  A logistic gives place, objectness and classes, and an
  exponential the size, in anchors.
- "new_coords": the same values, but the convolution before has applied the logistic.  They are used
  as they are, and the size is 4 value^2 anchors.

With `scale_x_y` = s the place in a cell is s value - (s - 1) / 2.
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


def parts(raw: Array) -> Parts:
    """The values [..., 5 + C] of anchors by their meaning."""
    return Parts(raw[..., :4], raw[..., 4:5], raw[..., 5:])


def probabilities(head: Any, raw: Array) -> tuple[Array, Array]:
    """The objectness [..., 1] and the class probabilities [..., C] of anchors.

    Args:
      head: has the fields of `detlab.darknet.cfg.Yolo`.
      raw: [..., 5 + C].
    """
    _, objectness, classes = parts(raw)
    if head.kind == "new_coords":
        return objectness, classes
    return nn.sigmoid(objectness), nn.sigmoid(classes)


def scores(head: Any, raw: Array, threshold: float) -> Array:
    """The score of each class, [..., C], 0 where the objectness is not above `threshold`.

    Args:
      head, raw: as in `probabilities`.
      threshold: darknet's `thresh`.
    """
    objectness, classes = probabilities(head, raw)
    return jnp.where(objectness > threshold, objectness * classes, 0.0)


def boxes(head: Any, raw: Array, canvas: tuple[int, int]) -> Array:
    """Boxes, cxcywh relative to the canvas.

    Args:
      head: has the fields of `detlab.darknet.cfg.Yolo`.
      raw: [B, Hl, Wl, A, 5 + C].
      canvas: (height, width) px.
    Returns:
      [B, Hl, Wl, A, 4].
    """
    rows, columns = raw.shape[1:3]
    box = parts(raw).box
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)[:, :, None]
    anchors = np.array([head.anchors[i] for i in head.mask], np.float32)  # [A, 2]
    anchors = anchors / np.array(canvas[::-1], np.float32)
    if head.kind == "new_coords":
        place, growth = box[..., :2], 4 * jnp.square(box[..., 2:])
    else:
        place, growth = nn.sigmoid(box[..., :2]), jnp.exp(box[..., 2:])
    place = head.scale_x_y * place - 0.5 * (head.scale_x_y - 1)
    centre = (cells + place) / np.array([columns, rows], np.float32)
    return jnp.concatenate([centre, growth * anchors], axis=-1)

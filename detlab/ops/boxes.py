"""Box arithmetic: formats, areas, transforms and overlap measures.

Boxes are `x1, y1, x2, y2` in pixels unless a name says otherwise, and a width is `x2 - x1` (no
"+ 1").  All functions accept any leading axes.  Functions of two sets of boxes broadcast them:
equal shapes give aligned pairs, and `pairwise` gives the full matrix.

Denominators are clamped to at least `EPS` (a maximum, not a sum).  A box without area therefore
has IoU 0 with every box, and zero padding causes neither NaN nor gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

EPS = 1e-6


def area(boxes):
    """Areas [...] of boxes [..., 4], px^2; negative if the corners along one axis are swapped.

    Example:
      >>> float(area(jnp.array([1.0, 2.0, 4.0, 6.0])))
      12.0
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes, height: float | jax.Array, width: float | jax.Array):
    """Clips boxes [..., 4] to an image of `height` and `width` px, static or traced.

    Example:
      >>> clip(jnp.array([-5.0, 2.0, 30.0, 8.0]), height=10, width=20).tolist()
      [0.0, 2.0, 20.0, 8.0]
    """
    zero = jnp.zeros_like(boxes[..., 0])
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack(
        [
            _clamp(x1, zero, width),
            _clamp(y1, zero, height),
            _clamp(x2, zero, width),
            _clamp(y2, zero, height),
        ],
        axis=-1,
    )


def flip_horizontal(boxes, width: float | jax.Array):
    """Mirrors boxes [..., 4] in an image of `width` px.

    Example:
      >>> flip_horizontal(jnp.array([1.0, 2.0, 4.0, 6.0]), width=10).tolist()
      [6.0, 2.0, 9.0, 6.0]
    """
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def scale(boxes, factors):
    """Multiplies boxes [..., 4] by factors [], or by factors [..., 2] of x and y.

    Example:
      >>> scale(jnp.array([1.0, 2.0, 4.0, 6.0]), (2, 10)).tolist()
      [2.0, 20.0, 8.0, 60.0]
    """
    factors = jnp.asarray(factors, boxes.dtype)
    if factors.ndim:
        factors = jnp.concatenate([factors, factors], axis=-1)
    return boxes * factors


def xyxy_to_cxcywh(boxes):
    """Converts boxes [..., 4] from corners to centre x, centre y, width, height.

    Example:
      >>> xyxy_to_cxcywh(jnp.array([1.0, 2.0, 5.0, 10.0])).tolist()
      [3.0, 6.0, 4.0, 8.0]
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) * 0.5, high - low], axis=-1)


def cxcywh_to_xyxy(boxes):
    """Converts boxes [..., 4] from centre x, centre y, width, height to corners.

    Example:
      >>> cxcywh_to_xyxy(jnp.array([3.0, 6.0, 4.0, 8.0])).tolist()
      [1.0, 2.0, 5.0, 10.0]
    """
    center, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return jnp.concatenate([center - half, center + half], axis=-1)


def xywh_to_xyxy(boxes):
    """Converts boxes [..., 4] from left, top, width, height (COCO's files) to corners.

    Example:
      >>> xywh_to_xyxy(jnp.array([1.0, 2.0, 4.0, 8.0])).tolist()
      [1.0, 2.0, 5.0, 10.0]
    """
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes):
    """Converts boxes [..., 4] from corners to left, top, width, height.

    Example:
      >>> xyxy_to_xywh(jnp.array([1.0, 2.0, 5.0, 10.0])).tolist()
      [1.0, 2.0, 4.0, 8.0]
    """
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def iou(a, b):
    """Intersection over union [...] of boxes a [..., 4] and b [..., 4].

    Example:
      >>> a, b = jnp.array([0.0, 0.0, 3.0, 2.0]), jnp.array([1.0, 0.0, 4.0, 2.0])
      >>> round(float(iou(a, b)), 3)  # 4 / 8
      0.5
    """
    intersection, union = _intersection_and_union(a, b)
    return intersection / union


def iof(a, b):
    """Intersection over the area of a ("foreground"), [...], of boxes a [..., 4] and b [..., 4].

    Example:
      >>> a, b = jnp.array([0.0, 0.0, 4.0, 2.0]), jnp.array([2.0, 0.0, 8.0, 2.0])
      >>> round(float(iof(a, b)), 3)  # 4 / 8, where the IoU is 4 / 16
      0.5
    """
    return _intersection(a, b) / jnp.maximum(area(a), EPS)


def giou(a, b):
    """Generalized IoU (arXiv:1902.09630, algorithm 1) of boxes a [..., 4] and b [..., 4].

    The values [...] are in -1..1 and at most the IoU.

    Example:
      >>> a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([6.0, 0.0, 8.0, 2.0])
      >>> round(float(giou(a, b)), 3)  # 0 / 8 - (16 - 8) / 16
      -0.5
    """
    intersection, union = _intersection_and_union(a, b)
    width, height = _enclosing_size(a, b)
    enclosing = jnp.maximum(width * height, EPS)
    return intersection / union - (enclosing - union) / enclosing


def diou(a, b):
    """Distance IoU (arXiv:1911.08287, eq. 7) of boxes a [..., 4] and b [..., 4].

    The values [...] are the IoU minus the squared distance of the centres, which is relative to the
    squared diagonal of the enclosing box.

    Example:
      >>> a, b = jnp.array([0.0, 0.0, 2.0, 3.0]), jnp.array([2.0, 0.0, 4.0, 3.0])
      >>> round(float(diou(a, b)), 3)  # 0 / 12 - 2**2 / (4**2 + 3**2)
      -0.16
    """
    dx = (b[..., 0] + b[..., 2] - a[..., 0] - a[..., 2]) * 0.5
    dy = (b[..., 1] + b[..., 3] - a[..., 1] - a[..., 3]) * 0.5
    width, height = _enclosing_size(a, b)
    diagonal = jnp.maximum(width**2 + height**2, EPS)  # squared
    return iou(a, b) - (dx**2 + dy**2) / diagonal


def ciou(a, b, ratio_above: float = 0.5):
    """Complete IoU (arXiv:1911.08287, eq. 8-11) of boxes a [..., 4] and b [..., 4].

    The values [...] are the DIoU minus a term for the aspect ratio.

    As in the authors' code, the term counts only where IoU > 0.5, and its weight alpha is a
    constant for the gradient.  In YOLOv5 the term counts everywhere: `ratio_above` is -1.

    Example:
      >>> a, b = jnp.array([0.0, 0.0, 4.0, 4.0]), jnp.array([0.0, 1.5, 4.0, 2.5])
      >>> round(float(ciou(a, b)), 3)  # the IoU, as both have the same centre
      0.25
      >>> round(float(ciou(a, b, ratio_above=-1.0)), 3)
      0.234
    """
    v = (4 / jnp.pi**2) * (_aspect_angle(b) - _aspect_angle(a)) ** 2
    overlap = jax.lax.stop_gradient(iou(a, b))
    constant_v = jax.lax.stop_gradient(v)
    # Identical boxes make this 0 / 0 without the maximum.
    alpha = constant_v / jnp.maximum(1 - overlap + constant_v, EPS)
    return diou(a, b) - jnp.where(overlap > ratio_above, alpha, 0.0) * v


def pairwise(measure: Callable[..., Any], a, b):
    """Applies `measure` to every pair of boxes.

    Args:
      measure: a function of two boxes, such as `iou` or `giou`.
      a: [..., N, 4].
      b: [..., M, 4].
    Returns:
      [..., N, M].

    Example:
      >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
      >>> b = jnp.array([[0.0, 0.0, 2.0, 2.0], [6.0, 0.0, 8.0, 2.0]])
      >>> pairwise(giou, a, b).round(3).tolist()
      [[1.0, -0.5]]
    """
    return measure(a[..., :, None, :], b[..., None, :, :])


def pairwise_iou(a, b):
    """IoU [..., N, M] of every pair of a [..., N, 4] and b [..., M, 4].

    Example:
      >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 2.0]])
      >>> b = jnp.array([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
      >>> pairwise_iou(a, b).round(3).tolist()
      [[1.0, 0.0], [0.5, 0.5]]
    """
    return pairwise(iou, a, b)


def _clamp(x, low, high):
    # Unlike jnp.clip, this passes on the full gradient of a value on the border, as PyTorch does.
    return jnp.where(x < low, low, jnp.where(x > high, high, x)).astype(x.dtype)


def _positive_part(x):
    # The gradient at 0 is 1 (jnp.maximum gives one half): touching boxes can start to overlap.
    return jnp.where(x >= 0, x, 0.0)


# One coordinate at a time: XLA on CPU vectorises this, but not a product over an axis of two.
def _intersection(a, b):
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return _positive_part(width) * _positive_part(height)


def _intersection_and_union(a, b):
    intersection = _intersection(a, b)
    return intersection, jnp.maximum(area(a) + area(b) - intersection, EPS)


def _enclosing_size(a, b):
    """Width and height, [...] each, of the smallest box around both."""
    width = jnp.maximum(a[..., 2], b[..., 2]) - jnp.minimum(a[..., 0], b[..., 0])
    height = jnp.maximum(a[..., 3], b[..., 3]) - jnp.minimum(a[..., 1], b[..., 1])
    return _positive_part(width), _positive_part(height)


def _aspect_angle(boxes):
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return jnp.arctan(width / jnp.maximum(height, EPS))

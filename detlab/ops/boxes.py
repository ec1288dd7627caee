"""Box arithmetic: formats, areas, geometric changes and the overlap measures.

Boxes are `x1, y1, x2, y2` in pixels unless a name says otherwise, and a width is `x2 - x1` (no
"+ 1").  All functions take any leading axes; those of two boxes broadcast, so equal shapes give
aligned pairs and `pairwise` gives the full matrix.

Denominators are at least `EPS` (a maximum, not a sum), so a box without area has IoU 0 with
everything and zero padding gives neither NaN nor gradient.
"""

import jax
import jax.numpy as jnp

EPS = 1e-6


def area(boxes):
    """[..., 4] xyxy -> [...] width times height, px^2; negative for a box turned inside out."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes, height, width):
    """Boxes [..., 4] moved into an image of `height` and `width` px, which may be traced."""
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


def flip_horizontal(boxes, width):
    """Boxes [..., 4] mirrored in an image of `width` px."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def scale(boxes, factors):
    """Boxes [..., 4] times `factors`: one number, or [..., 2] for x and y."""
    factors = jnp.asarray(factors, boxes.dtype)
    if factors.ndim:
        factors = jnp.concatenate([factors, factors], axis=-1)
    return boxes * factors


def xyxy_to_cxcywh(boxes):
    """[..., 4] corners -> centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) * 0.5, high - low], axis=-1)


def cxcywh_to_xyxy(boxes):
    """[..., 4] centre x, centre y, width, height -> corners."""
    center, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return jnp.concatenate([center - half, center + half], axis=-1)


def xywh_to_xyxy(boxes):
    """[..., 4] left, top, width, height (COCO's files) -> corners."""
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes):
    """[..., 4] corners -> left, top, width, height."""
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def iou(a, b):
    """Intersection over union of boxes that broadcast, [..., 4] each -> [...]."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / union


def iof(a, b):
    """Intersection over the area of the first box ("foreground"), [..., 4] each -> [...]."""
    return _intersection(a, b) / jnp.maximum(area(a), EPS)


def giou(a, b):
    """Generalized IoU (arXiv:1902.09630, algorithm 1): -1..1, and at most the IoU."""
    intersection, union = _intersection_and_union(a, b)
    width, height = _enclosing_size(a, b)
    enclosing = jnp.maximum(width * height, EPS)
    return intersection / union - (enclosing - union) / enclosing


def diou(a, b):
    """Distance IoU (arXiv:1911.08287, eq. 7): IoU less the scaled squared centre distance."""
    dx = (b[..., 0] + b[..., 2] - a[..., 0] - a[..., 2]) * 0.5
    dy = (b[..., 1] + b[..., 3] - a[..., 1] - a[..., 3]) * 0.5
    width, height = _enclosing_size(a, b)
    diagonal = jnp.maximum(width**2 + height**2, EPS)  # squared
    return iou(a, b) - (dx**2 + dy**2) / diagonal


def ciou(a, b, ratio_above=0.5):
    """Complete IoU (arXiv:1911.08287, eq. 8-11): DIoU less a term for the aspect ratio.

    As in the authors' code the ratio counts only where IoU > 0.5, and its weight alpha is a
    constant for the gradient.  In YOLOv5 it counts everywhere, `ratio_above` -1.
    """
    v = (4 / jnp.pi**2) * (_aspect_angle(b) - _aspect_angle(a)) ** 2
    overlap = jax.lax.stop_gradient(iou(a, b))
    constant_v = jax.lax.stop_gradient(v)
    # Identical boxes make this 0 / 0 without the maximum.
    alpha = constant_v / jnp.maximum(1 - overlap + constant_v, EPS)
    return diou(a, b) - jnp.where(overlap > ratio_above, alpha, 0.0) * v


def pairwise(measure, a, b):
    """`measure` (`iou`, `giou` ...) of every pair: [..., N, 4], [..., M, 4] -> [..., N, M]."""
    return measure(a[..., :, None, :], b[..., None, :, :])


def pairwise_iou(a, b):
    """IoU of every pair: [..., N, 4], [..., M, 4] -> [..., N, M]."""
    return pairwise(iou, a, b)


def _clamp(x, low, high):
    # Unlike jnp.clip, a value on a border passes its whole gradient on, as in PyTorch.
    return jnp.where(x < low, low, jnp.where(x > high, high, x)).astype(x.dtype)


def _positive_part(x):
    # The gradient at 0 is 1 (jnp.maximum gives one half): touching boxes can begin to overlap.
    return jnp.where(x >= 0, x, 0.0)


# Coordinate by coordinate: XLA on CPU vectorises this and not a product over an axis of two.
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

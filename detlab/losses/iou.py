"""Overlap losses of boxes, unreduced; boxes are [..., 4] xyxy px."""

import jax.numpy as jnp

from detlab.losses import regression
from detlab.ops import boxes as boxes_lib


def iou_loss(pred, target, mode: str = "log"):
    """-ln IoU (UnitBox, arXiv:1608.01471), 1 - IoU or 1 - IoU^2.

    The IoU is clipped to at least 1e-6: boxes without overlap have a finite loss and no gradient.

    Args:
      pred: [..., 4] xyxy px.
      target: [..., 4] xyxy px.
      mode: "log", "linear" or "square": the first, second or third of these losses.
    Returns:
      [...].
    Raises:
      ValueError: `mode` is not "log", "linear" or "square".
    """
    if mode not in ("log", "linear", "square"):
        raise ValueError(f"mode must be 'log', 'linear' or 'square', not {mode!r}")
    iou = jnp.maximum(boxes_lib.iou(pred, target), boxes_lib.EPS)
    if mode == "log":
        return -jnp.log(iou)
    return 1 - iou if mode == "linear" else 1 - iou**2


def giou_loss(pred, target):
    """1 - GIoU (arXiv:1902.09630), [...] in 0..2, of pred [..., 4] and target [..., 4]."""
    return 1 - boxes_lib.giou(pred, target)


def diou_loss(pred, target):
    """1 - DIoU (arXiv:1911.08287), [...] in 0..2, of pred [..., 4] and target [..., 4]."""
    return 1 - boxes_lib.diou(pred, target)


def ciou_loss(pred, target):
    """1 - CIoU (arXiv:1911.08287), [...], of pred [..., 4] and target [..., 4].

    Identical boxes give 0, not 0 / 0.
    """
    return 1 - boxes_lib.ciou(pred, target)


def bounded_iou_loss(pred, target, beta: float = 0.2, eps: float = 1e-3):
    """Smooth L1 of a bound of the IoU along each coordinate (arXiv:1711.00164, eq. 10).

    Args:
      pred: [..., 4] xyxy px.
      target: [..., 4] xyxy px.
      beta: of the smooth L1.
      eps: px, added to the denominators.
    Returns:
      [..., 4]: the losses of centre x, centre y, width and height.
    """
    pred, target = boxes_lib.xyxy_to_cxcywh(pred), boxes_lib.xyxy_to_cxcywh(target)
    pred_size, size = pred[..., 2:], target[..., 2:]
    distance = 2 * regression.l1(pred[..., :2], target[..., :2])
    center_bound = jnp.maximum((size - distance) / (size + distance + eps), 0)
    size_bound = jnp.minimum(size / (pred_size + eps), pred_size / (size + eps))
    bound = jnp.concatenate([center_bound, size_bound], axis=-1)
    return regression.smooth_l1(bound, 1.0, beta)

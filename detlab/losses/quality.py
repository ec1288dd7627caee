"""Losses of class scores that also predict how well the box fits, unreduced.

The target of a positive is the overlap of its box with the object, between 0 and 1; that of all
other scores is 0.  A detector passes targets without gradient.
"""

import jax
import jax.numpy as jnp

from detlab.losses import cross_entropy, regression


def quality_focal(logits, qualities, beta: float = 2.0):
    """Cross entropy, scaled by |q - p|^beta (GFL, arXiv:2006.04388, eq. 2).

    The gradient also runs through the scale.

    Args:
      logits: [..., C] any float type; the loss is float32.
      qualities: [..., C] targets q in 0..1.
      beta: focusing exponent, >= 1; below, the gradient is infinite where p = q.
    Returns:
      [..., C] float32, not reduced.
    """
    logits = logits.astype(jnp.float32)
    distance = regression.l1(jax.nn.sigmoid(logits), qualities)
    return distance**beta * cross_entropy.sigmoid_cross_entropy(logits, qualities)


def varifocal(
    logits, qualities, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
):
    """Cross entropy, scaled by q, or by alpha p^gamma where q is 0 (arXiv:2008.13367, eq. 2).

    Only negatives are made light, and good positives count more.  The gradient also runs through
    p^gamma.  A positive of quality 0 counts as negative.

    Args:
      logits: [..., C] any float type; the loss is float32.
      qualities: [..., C] targets q in 0..1.
      alpha: weight of the negatives.
      gamma: focusing exponent of the negatives, >= 0.
      iou_weighted: positives are scaled by q; if not, by 1.
    Returns:
      [..., C] float32, not reduced.
    """
    logits = logits.astype(jnp.float32)
    # From ln p, which stays finite: p^gamma has an infinite slope where p is 0 and gamma < 1.
    negative = alpha * jnp.exp(gamma * jax.nn.log_sigmoid(logits))
    positive = qualities if iou_weighted else 1.0
    scale = jnp.where(qualities > 0, positive, negative)
    return scale * cross_entropy.sigmoid_cross_entropy(logits, qualities)

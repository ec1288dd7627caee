"""The loss of guided anchoring's locations (arXiv:1901.03278, "Anchor location targets")."""

import jax.numpy as jnp

from detlab.losses import focal

# Both are the reference's.
NEGATIVE_WEIGHT = 0.1
CELLS = 200  # as many count as one in the normaliser


def location_focal(logits, status, alpha: float = 0.25, gamma: float = 2.0, inverted: bool = False):
    """Focal loss of every cell.

    Args:
      logits: [...] of the probability that the middle of an object is in the cell.
      status: [...] int: 1 positive, 0 negative, -1 ignored.
      alpha, gamma: of the focal loss.
      inverted: the logits are those of the opposite.  This is how mmdetection 3.3.0 trains them, as
        its focal loss takes the target 1, meant for objects, for the background.
    Returns:
      [...] float32, 0 where ignored, and weighted by `NEGATIVE_WEIGHT` where negative.
    """
    target = (status == 1) != inverted
    loss = focal.sigmoid_focal(logits, target.astype(jnp.float32), alpha, gamma)
    weight = jnp.where(status == 0, NEGATIVE_WEIGHT, 1.0)
    return jnp.where(status >= 0, weight * loss, 0.0)

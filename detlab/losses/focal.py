"""Focal loss on sigmoid scores (RetinaNet, arXiv:1708.02002, eq. 5)."""

import jax.numpy as jnp


def sigmoid_focal(logits, targets, alpha: float = 0.25, gamma: float = 2.0):
    """-alpha_t (1 - p_t)^gamma ln p_t, element by element.

    Everything is computed from ln p_t and ln (1 - p_t), which stay finite for any logit, so the
    loss neither overflows nor loses its gradient where the sigmoid is 0 or 1 in float32.

    Args:
      logits: [..., C] any float type; the loss is float32.
      targets: [..., C] 0 or 1; a row of zeros is background.
      alpha: weight of the positives; the negatives have 1 - alpha.
      gamma: focusing exponent, >= 0.
    Returns:
      [..., C] float32, not reduced.
    """
    targets = targets.astype(jnp.float32)
    signed = logits.astype(jnp.float32) * (2 * targets - 1)  # p_t = sigmoid(signed)
    # -|x| as a minimum: its gradient at 0 is 0, where that of jnp.abs is 1.
    tail = jnp.log1p(jnp.exp(jnp.minimum(signed, -signed)))
    log_pt = jnp.minimum(signed, 0) - tail
    log_one_minus_pt = -jnp.maximum(signed, 0) - tail
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return -alpha_t * jnp.exp(gamma * log_one_minus_pt) * log_pt

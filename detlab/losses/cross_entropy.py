"""Cross entropy of sigmoid scores, unreduced."""

import jax
import jax.numpy as jnp


def sigmoid_cross_entropy(logits, targets):
    """-t ln p - (1 - t) ln(1 - p) with p = sigmoid(logits), finite for any logit.

    Args:
      logits: [...] any float type; the loss is float32.
      targets: [...] 0..1, labels or qualities.
    Returns:
      [...] float32, not reduced.
    """
    logits = logits.astype(jnp.float32)
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))

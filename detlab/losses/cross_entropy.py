"""Cross entropy of sigmoid and softmax scores, unreduced."""

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


def softmax_cross_entropy(logits, labels):
    """-ln softmax(logits) at the label.

    Args:
      logits: [..., K] any float type; the loss is float32.
      labels: [...] int, 0..K-1.
    Returns:
      [...] float32, not reduced.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]

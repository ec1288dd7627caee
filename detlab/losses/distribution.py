"""The loss of a number that is predicted as a distribution over whole numbers, unreduced."""

import jax
import jax.numpy as jnp


def distribution_focal(logits, targets):
    """Cross entropy with the two whole numbers around the target (arXiv:2006.04388, eq. 6).

    Each counts by how near it is, so the mean of the best distribution is the target.

    Args:
      logits: [..., K] any float type, of the numbers 0 .. K - 1; the loss is float32.
      targets: [...] numbers, 0 <= y < K - 1.
    Returns:
      [...] float32, not reduced.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # (i + 1 - y) and (y - i) of eq. 6 are 1 - |y - k| at k = i and k = i + 1.
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.float32)
    nearness = jnp.maximum(1 - jnp.abs(targets[..., None] - numbers), 0.0)
    return -(nearness * log_p).sum(-1)

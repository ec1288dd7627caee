"""Hard negative mining (SSD, arXiv:1512.02325, section 2.2).

Only the background that looks most like an object is learned.
"""

import jax.numpy as jnp
from jax import lax


def hardest(losses, negative, num):
    """The negatives of one image with the largest losses; of equal ones, the first.

    Args:
      losses: [N] >= 0.
      negative: [N] bool, those to choose from.
      num: [] how many to choose, may be traced; if there are fewer, all are chosen.
    Returns:
      [N] bool, without gradient.
    """
    losses = lax.stop_gradient(jnp.where(negative, losses, -1.0))
    _, order = lax.top_k(losses, len(losses))
    best = jnp.arange(len(losses)) < num
    return jnp.zeros_like(best).at[order].set(best, unique_indices=True) & negative

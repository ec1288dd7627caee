"""Losses of the embeddings that pair corners (CornerNet, arXiv:1808.01244)."""

import jax
import jax.numpy as jnp

from detlab.losses import regression


def pull(first, second):
    """Squared distances of the two embeddings of an object from their mean, summed (eq. 4).

    Args:
      first, second: [..., G] embeddings of both corners of each object.
    Returns:
      [..., G] float32, not reduced; the paper divides the sum by the number of objects.
    """
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    mean = (first + second) / 2
    return (first - mean) ** 2 + (second - mean) ** 2


def push(first, second, margin: float = 1.0):
    """How much closer than `margin` the mean embeddings of two objects are (eq. 5).

    Args:
      first, second: [G] embeddings of both corners of each object of one image.
      margin: in the unit of the embeddings.
    Returns:
      [G, G] float32, not reduced, 0 on the diagonal; the paper divides the sum over all ordered
      pairs by N (N - 1).
    """
    mean = (first.astype(jnp.float32) + second.astype(jnp.float32)) / 2
    distance = regression.l1(mean[:, None], mean)
    near = jax.nn.relu(margin - distance)
    return jnp.where(jnp.eye(len(mean), dtype=bool), 0.0, near)

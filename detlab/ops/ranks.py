"""Ranks of rows within groups."""

import jax.numpy as jnp
from jax import lax


def in_groups(group, *keys):
    """How many rows of the same group come before each row.

    Rows are ordered by the largest first key, then by the largest second one; of equal ones, the
    first row is first.

    Args:
      group: [N] int.
      keys: [N] each, numbers.
    Returns:
      [N] int32.
    Example:
      >>> in_groups(jnp.array([7, 2, 7, 7]), jnp.array([0.1, 0.5, 0.9, 0.3])).tolist()
      [2, 0, 0, 1]
    """
    order = jnp.lexsort((*(-key for key in reversed(keys)), group))  # the last key decides first
    ordered, place = group[order], jnp.arange(len(order), dtype=jnp.int32)
    begins = jnp.diff(ordered, prepend=ordered[:1] - 1) != 0
    first = lax.cummax(jnp.where(begins, place, 0))  # of the row's group
    return jnp.zeros_like(place).at[order].set(place - first, unique_indices=True)

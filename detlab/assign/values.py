"""What `types.Targets.values` hold of the entries that learn no object: zeros."""

import jax
import jax.numpy as jnp


def of_positives(status, values):
    """The values of positive entries, and zeros in place of all others.

    An entry that is background, ignored or padding has no object, so what was computed for it,
    mostly from slot 0, means nothing.

    Args:
      status: [..., M] int32 of `types.Targets`.
      values: tree of arrays [..., M, ...], finite where positive.
    Returns:
      The tree with the same shapes and dtypes.
    """
    positive = status == 1

    def of_array(array):
        here = positive.reshape(positive.shape + (1,) * (array.ndim - positive.ndim))
        return jnp.where(here, array, jnp.zeros((), array.dtype))

    return jax.tree.map(of_array, values)

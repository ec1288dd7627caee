"""Balanced feature pyramid (Libra R-CNN, arXiv:1904.02701, section 3.2).

All levels are brought to one size and averaged; the average is refined and added to every level.

Parameter paths: `refine/{g,theta,phi,output}`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import layers
from detlab.ops import pool


class NonLocal(nn.Module):
    """Embedded Gaussian non-local block (arXiv:1711.07971, eq. 4 and 6), without scaling.

    Every cell adds a mean of all cells, weighted by similarity.  With N cells, the weights are
    [B, N, N] float32: 70 MB for the 50x84 cells of stride 16 on an image of 800x1344 px.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, Hl, Wl, D] -> the same shape."""

        def cells(name):  # [B, N, D]
            conv = layers.Conv(
                x.shape[-1], 1, kernel_init=layers.normal_001, dtype=self.dtype, name=name
            )
            return conv(x).reshape(x.shape[0], -1, x.shape[-1])

        values, queries, keys = cells("g"), cells("theta"), cells("phi")
        similarity = jnp.einsum("bqd,bkd->bqk", queries, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(similarity).astype(self.dtype)
        mean = jnp.einsum("bqk,bkd->bqd", weights, values).reshape(x.shape)
        # Zero at first: a new block changes nothing.
        output = layers.Conv(
            x.shape[-1], 1, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="output"
        )
        return x + output(mean)


class BFP(nn.Module):
    """Adds the refined average of all levels to each level of a pyramid.

    Levels finer than level `refine_level` are brought to its size, and back to coarser ones, by
    maxima; the other way by repeating cells.
    """

    refine_level: int = 2  # from 0, the finest
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features):
        """(P_start, ...), each [B, Hl, Wl, D] -> the same shapes."""
        size = features[self.refine_level].shape[1:3]
        balanced = sum(_resize(x, size) for x in features) / len(features)  # [B, Hr, Wr, D]
        balanced = NonLocal(dtype=self.dtype, name="refine")(balanced)
        return tuple(x + _resize(balanced, x.shape[1:3]) for x in features)


def _resize(x, size):
    """[B, h, w, D] -> [B, H, W, D] with `size` = (H, W)."""
    if x.shape[1:3] == size:
        return x
    return layers.upsample(x, size) if x.shape[1] < size[0] else pool.adaptive_max_pool(x, size)

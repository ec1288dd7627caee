"""The head of the region proposal network (arXiv:1506.01497, 3.1)."""

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers


class RPNHead(nn.Module):
    """A 3x3 convolution shared by all levels, then one score and four deltas per anchor.

    Parameter paths: `conv/conv`, `cls_logits`, `box_deltas`.
    """

    anchors_per_cell: int = 3
    width: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P2, ...) -> tuples of logits [B, Hl, Wl, A] and deltas [B, Hl, Wl, A * 4], float32."""
        common = dict(kernel_init=layers.normal_001, dtype=self.dtype)
        conv = layers.ConvNorm(self.width, activation=nn.relu, name="conv", **common)
        cls = layers.Conv(self.anchors_per_cell, 1, name="cls_logits", **common)
        box = layers.Conv(self.anchors_per_cell * 4, 1, name="box_deltas", **common)
        towers = [conv(x, train) for x in features]
        return (
            tuple(cls(x).astype(jnp.float32) for x in towers),
            tuple(box(x).astype(jnp.float32) for x in towers),
        )

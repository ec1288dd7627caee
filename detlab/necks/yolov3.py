"""The neck of YOLOv3 (arXiv:1804.02767, section 2.3): a pyramid that concatenates.

Parameter paths: `block5/conv1/{conv,norm}`, ..., `block5/conv5/{conv,norm}`,
`reduce5/{conv,norm}`, `block4/...`; the number is the pyramid level; level l has stride 2^l.
"""

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers


class DetectionBlock(nn.Module):
    """Five convolutions, alternately 1x1 to `width` and 3x3 to twice that; the last is 1x1."""

    width: int
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        for i in range(1, 6):
            narrow = i % 2 == 1
            x = layers.ConvNorm(
                self.width if narrow else 2 * self.width,
                1 if narrow else 3,
                norm=self.norm,
                activation=layers.leaky_relu,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x, train)
        return x


class YOLONeck(nn.Module):
    """Top-down over C3..C5; each coarser level has twice the channels."""

    width: int = 128  # of P3
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """[C3, C4, C5] -> (P3, P4, P5), each [B, Hl, Wl, width * 2^(l - 3)]."""
        common = dict(norm=self.norm, dtype=self.dtype)
        outputs = {}
        for level in (5, 4, 3):
            x = features[level - 3]
            width = self.width * 2 ** (level - 3)
            if level < 5:
                above = layers.ConvNorm(
                    width,
                    1,
                    activation=layers.leaky_relu,
                    name=f"reduce{level + 1}",
                    **common,
                )(outputs[level + 1], train)
                x = jnp.concatenate([layers.upsample(above, x.shape[1:3]), x], axis=-1)
            outputs[level] = DetectionBlock(width, name=f"block{level}", **common)(x, train)
        return outputs[3], outputs[4], outputs[5]

"""Darknet-53 (YOLOv3, arXiv:1804.02767, table 1) as detectors use it: C3..C5, no classifier.

Parameter paths: `stem/{conv,norm}`, `stage1_down/{conv,norm}`, `stage1_block0/conv1/{conv,norm}`,
`stage1_block0/conv2/{conv,norm}`, ...; stage s has stride 2^s.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers


class Residual(nn.Module):
    """A 1x1 convolution to half the width and a 3x3 one back, plus the input."""

    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        width = x.shape[-1]
        common = dict(norm=self.norm, activation=layers.leaky_relu, dtype=self.dtype)
        y = layers.ConvNorm(width // 2, 1, name="conv1", **common)(x, train)
        y = layers.ConvNorm(width, 3, name="conv2", **common)(y, train)
        return x + y  # no activation after the sum, unlike ResNet


class Darknet(nn.Module):
    """Images to feature maps of strides 8, 16, 32.

    Each of the five stages has a 3x3 convolution that halves the map and doubles the channels, then
    residual blocks, as many as `blocks` says.  `remat` is as in `resnet.ResNet`.
    """

    blocks: Sequence[int] = (1, 2, 8, 8, 4)
    width: int = 32  # of the stem
    norm: str = "batch"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool):
        """[B, H, W, 3] normalised images -> [C3, C4, C5], each [B, H/s, W/s, width * s]."""
        conv, block = layers.ConvNorm, Residual
        if self.remat:  # argument 2, counted from self, is `train`: a Python value
            conv, block = (nn.remat(part, static_argnums=(2,)) for part in (conv, block))
        common = dict(norm=self.norm, dtype=self.dtype)
        x = conv(self.width, 3, activation=layers.leaky_relu, name="stem", **common)(images, train)
        features = []
        for stage, blocks in enumerate(self.blocks, start=1):
            width = self.width * 2**stage
            down = conv(
                width, 3, 2, activation=layers.leaky_relu, name=f"stage{stage}_down", **common
            )
            x = down(x, train)
            for i in range(blocks):
                x = block(name=f"stage{stage}_block{i}", **common)(x, train)
            features.append(x)
        return features[-3:]

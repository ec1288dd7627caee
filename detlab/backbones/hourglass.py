"""Stacked hourglass network (arXiv:1603.06937) as in CornerNet (arXiv:1808.01244, section 3.5).

An hourglass halves its map several times, then enlarges it again and adds the features that it had
at each size.  Each stack passes its map on to the next, which refines it; all of them are
supervised.  Unlike the first paper, there are strides instead of pooling, and residual blocks of
two 3x3 convolutions.

Parameter paths: `stem/{conv,norm}`, `stem_block/...`, `hourglass0/skip0/...`,
`hourglass0/down0/...`, `hourglass0/inner/...` (the next smaller one, or blocks `inner0`, ...),
`hourglass0/up0/...`, `out0/{conv,norm}`, and between the stacks `keep0`, `remap0`, `join0`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers
from detlab.backbones import resnet


class Hourglass(nn.Module):
    """One hourglass; `channels` and `blocks` are for each map size, largest first."""

    channels: Sequence[int]
    blocks: Sequence[int]
    norm: str = "batch"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):  # [B, H, W, channels[0]] -> the same shape
        block = (
            nn.remat(resnet.BasicBlock, static_argnums=(2,)) if self.remat else resnet.BasicBlock
        )

        def residual(x, name, width, stride=1):
            return block(width, stride, "pytorch", self.norm, dtype=self.dtype, name=name)(x, train)

        here, below = self.channels[:2]
        skip = x
        for i in range(self.blocks[0]):
            skip = residual(skip, f"skip{i}", here)
        for i in range(self.blocks[0]):
            x = residual(x, f"down{i}", below, stride=2 if i == 0 else 1)
        if len(self.channels) > 2:
            smaller = Hourglass(
                self.channels[1:], self.blocks[1:], self.norm, self.remat, self.dtype, name="inner"
            )
            x = smaller(x, train)
        else:
            for i in range(self.blocks[1]):
                x = residual(x, f"inner{i}", below)
        for i in range(self.blocks[0]):
            last = i == self.blocks[0] - 1
            x = residual(x, f"up{i}", here if last else below)
        return skip + layers.upsample(x, skip.shape[1:3])


class HourglassNet(nn.Module):
    """The stem, of stride 4, and `stacks` hourglasses."""

    stacks: int = 2
    channels: Sequence[int] = (256, 256, 384, 384, 384, 512)
    blocks: Sequence[int] = (2, 2, 2, 2, 2, 4)
    norm: str = "batch"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool):
        """[B, H, W, 3] normalised images -> for each stack [B, H / 4, W / 4, channels[0]]."""
        common = dict(norm=self.norm, dtype=self.dtype)
        width = self.channels[0]

        def conv(name, kernel_size, activation=None):
            return layers.ConvNorm(width, kernel_size, activation=activation, name=name, **common)

        def residual(name, stride=1):
            return resnet.BasicBlock(width, stride, "pytorch", name=name, **common)

        x = layers.ConvNorm(width // 2, 7, 2, activation=nn.relu, name="stem", **common)(
            images, train
        )
        x = residual("stem_block", stride=2)(x, train)
        features = []
        for i in range(self.stacks):
            hourglass = Hourglass(
                self.channels, self.blocks, remat=self.remat, name=f"hourglass{i}", **common
            )
            found = conv(f"out{i}", 3, nn.relu)(hourglass(x, train), train)
            features.append(found)
            if i < self.stacks - 1:
                x = conv(f"keep{i}", 1)(x, train) + conv(f"remap{i}", 1)(found, train)
                x = residual(f"join{i}")(nn.relu(x), train)
        return tuple(features)

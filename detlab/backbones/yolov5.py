"""The backbone of YOLOv5 (ultralytics/yolov5, releases 3.0 to 7.0), and the blocks of its neck.

Four things changed between releases, and each is an argument here:
  block       "csp": BottleneckCSP, releases 3.0 and 3.1; "c3": its successor without the two plain
              convolutions and the norm after the concatenation, from 4.0
  stem        "focus": a 3x3 convolution of the four pixels of each 2x2 square, up to 5.0;
              "conv6": a 6x6 convolution of stride 2, which can express the same, from 6.0
  pool        "spp": pyramid pooling comes before the last block, which then has no shortcuts, up
              to 5.0; "sppf": it comes after the last block, from 6.0.  Both compute the same maxima
              (see `SPP`)
  activation  leaky ReLU, hard-swish (3.0), SiLU (from 4.0)

Parameter paths: `stem/{conv,norm}`, `stage2_down/{conv,norm}`, `stage2_block/conv1/{conv,norm}`,
`stage2_block/bottleneck0/conv1/{conv,norm}`, ..., `spp/conv1/{conv,norm}`; stage s has stride 2^s.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers
from detlab.ops import pool as pool_lib

ACTIVATIONS = {
    "silu": nn.silu,
    "hard_swish": nn.hard_swish,
    "leaky_relu": layers.leaky_relu,
}
BLOCKS = ("csp", "c3")
STEMS = ("focus", "conv6")
POOLS = ("spp", "sppf")

# Number of detection levels -> channels of the stem and of each stage, before the width multiple.
# With four levels there is one more stage, of 768 channels, before the last.
CHANNELS = {3: (64, 128, 256, 512, 1024), 4: (64, 128, 256, 512, 768, 1024)}

# PyTorch's default, which YOLOv5 keeps: uniform in +-1 / sqrt(fan in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def scaled_width(channels: int, multiple: float) -> int:
    """Channels times the width multiple, rounded up to a multiple of 8."""
    return 8 * math.ceil(channels * multiple / 8)


def scaled_depth(repeats: int, multiple: float) -> int:
    """Bottlenecks of a block: repeats times the depth multiple, rounded, and at least one."""
    return max(1, round(repeats * multiple))


# Convolution, norm, activation; the norms' settings are YOLOv5's.
conv_norm = functools.partial(
    layers.ConvNorm, kernel_init=torch_uniform, norm_momentum=0.97, norm_epsilon=1e-3
)


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution of the input's width, plus the input if `shortcut`."""

    shortcut: bool = True
    norm: str = "batch"
    activation: Callable = nn.silu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        y = conv_norm(x.shape[-1], 1, name="conv1", **common)(x, train)
        y = conv_norm(x.shape[-1], 3, name="conv2", **common)(y, train)
        return x + y if self.shortcut else y


class Block(nn.Module):
    """A cross-stage-partial block: one path through `depth` bottlenecks, the other past them.

    A 1x1 convolution at the start of each path gives half of `features`; the last convolution
    merges the concatenated paths.  In "csp" the convolution of the path past the bottlenecks has no
    norm and activation, one more such convolution follows the bottlenecks, and norm and activation
    come after the concatenation.
    """

    features: int
    depth: int
    shortcut: bool = True
    kind: str = "c3"
    norm: str = "batch"
    activation: Callable = nn.silu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        half = self.features // 2
        y = conv_norm(half, 1, name="conv1", **common)(x, train)
        for i in range(self.depth):
            y = Bottleneck(self.shortcut, name=f"bottleneck{i}", **common)(y, train)
        if self.kind == "c3":
            past = conv_norm(half, 1, name="conv2", **common)(x, train)
            both = jnp.concatenate([y, past], axis=-1)
            return conv_norm(self.features, 1, name="conv3", **common)(both, train)

        def plain(name):
            return layers.Conv(
                half, 1, use_bias=False, kernel_init=torch_uniform, dtype=self.dtype, name=name
            )

        both = jnp.concatenate([plain("conv3")(y), plain("conv2")(x)], axis=-1)
        both = layers.Norm(self.norm, 0.97, 1e-3, dtype=self.dtype, name="norm")(both, train)
        both = layers.leaky_relu(both)  # in every release, whatever the other activations are
        return conv_norm(self.features, 1, name="conv4", **common)(both, train)


class SPP(nn.Module):
    """Spatial pyramid pooling: the map concatenated with its maxima over three window sizes.

    The windows are `size`, 2 size - 1 and 3 size - 2, such as 5, 9, 13: each pooling takes the
    output of the one before, as in SPPF.
    """

    features: int
    size: int = 5
    norm: str = "batch"
    activation: Callable = nn.silu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        maps = [conv_norm(x.shape[-1] // 2, 1, name="conv1", **common)(x, train)]
        for _ in range(3):
            maps.append(pool_lib.max_pool(maps[-1], self.size))
        both = jnp.concatenate(maps, axis=-1)
        return conv_norm(self.features, 1, name="conv2", **common)(both, train)


def corners(images):
    """The four pixels of each 2x2 square of images [B, H, W, 3] as channels: [B, H/2, W/2, 12].

    Their order is (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    return jnp.concatenate(
        [images[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], axis=-1
    )


class Backbone(nn.Module):
    """Images to the feature maps of stride 8 and every coarser stage.

    `repeats` is for the blocks of each stage from stride 4 up, before the depth multiple.  `remat`
    is as in `resnet.ResNet`.
    """

    repeats: Sequence[int] = (3, 6, 9, 3)
    depth_multiple: float = 0.33
    width_multiple: float = 0.5
    block: str = "c3"
    stem: str = "conv6"
    pool: str = "sppf"
    pool_size: int = 5
    norm: str = "batch"
    activation: Callable = nn.silu
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool):
        """[B, H, W, 3] -> [C3, C4, ...], each [B, H/s, W/s, Ds]; strides divide H and W."""
        conv, block, spp = conv_norm, Block, SPP
        if self.remat:  # argument 2, counted from self, is `train`: a Python value
            conv = functools.partial(
                nn.remat(layers.ConvNorm, static_argnums=(2,)), **conv_norm.keywords
            )
            block, spp = (nn.remat(part, static_argnums=(2,)) for part in (Block, SPP))
        common = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        stem, *widths = widths_of(len(self.repeats) - 1, self.width_multiple)
        if self.stem == "focus":
            x = conv(stem, 3, name="stem", **common)(corners(images), train)
        else:
            x = conv(stem, 6, 2, name="stem", **common)(images, train)
        features = []
        for stage, (width, repeats) in enumerate(zip(widths, self.repeats, strict=True), start=2):
            last = stage == len(widths) + 1
            x = conv(width, 3, 2, name=f"stage{stage}_down", **common)(x, train)
            pooling = spp(width, self.pool_size, name="spp", **common) if last else None
            if last and self.pool == "spp":
                x = pooling(x, train)
            x = block(
                width,
                scaled_depth(repeats, self.depth_multiple),
                shortcut=not (last and self.pool == "spp"),
                kind=self.block,
                name=f"stage{stage}_block",
                **common,
            )(x, train)
            if last and self.pool == "sppf":
                x = pooling(x, train)
            features.append(x)
        return features[1:]


def widths_of(levels: int, multiple: float) -> list[int]:
    """Channels of the stem and of every stage of a network with `levels` detection levels."""
    return [scaled_width(channels, multiple) for channels in CHANNELS[levels]]

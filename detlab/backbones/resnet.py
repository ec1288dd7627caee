"""ResNet (Deep Residual Learning, arXiv:1512.03385) as detectors use it: C2..C5, no classifier.

Parameter paths: `stem/{conv,norm}`, `stage1_block0/conv1/{conv,norm}`, ...,
`stage1_block0/shortcut/{conv,norm}`.  Deviations from the paper: the "pytorch" style puts the
stride of a bottleneck on its 3x3 convolution, as torchvision does; "caffe" on the first 1x1, as
the paper does.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import layers
from detlab.ops import pool

# Table 1 of the paper: blocks in stages 1..4 (the paper's conv2_x..conv5_x).
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and 34)."""

    width: int
    stride: int
    style: str  # both styles are the same here: the stride is on the first 3x3
    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(norm=self.norm, dtype=self.dtype)
        y = layers.ConvNorm(self.width, 3, self.stride, activation=nn.relu, name="conv1", **common)(
            x, train
        )
        y = layers.ConvNorm(self.width, 3, name="conv2", **common)(y, train)
        return nn.relu(y + shortcut(x, self.width, self.stride, train, common))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, the last to four times the width (ResNet-50 and 101)."""

    width: int
    stride: int
    style: str
    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(norm=self.norm, dtype=self.dtype)
        first, second = (self.stride, 1) if self.style == "caffe" else (1, self.stride)
        y = layers.ConvNorm(self.width, 1, first, activation=nn.relu, name="conv1", **common)(
            x, train
        )
        y = layers.ConvNorm(self.width, 3, second, activation=nn.relu, name="conv2", **common)(
            y, train
        )
        y = layers.ConvNorm(4 * self.width, 1, name="conv3", **common)(y, train)
        return nn.relu(y + shortcut(x, 4 * self.width, self.stride, train, common))


def shortcut(x, features: int, stride: int, train: bool, common: dict[str, Any]):
    """The identity on x [B, H, W, D], or a projection if the shape changes (3.3, option B)."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return layers.ConvNorm(features, 1, stride, name="shortcut", **common)(x, train)


class ResNet(nn.Module):
    """Images to feature maps of strides 4, 8, 16, 32.

    Stages up to `frozen_stages` (0: none, 1: the stem and stage 1, ...) get no gradient and keep
    their statistics.  With `remat` the backward pass recomputes the stem and each block from their
    inputs instead of storing their activations (arXiv:1604.06174): one more forward pass for less
    memory.
    """

    depth: int = 50
    style: str = "pytorch"
    norm: str = "stored"
    frozen_stages: int = 1
    width: int = 64
    stages: Sequence[int] | None = None  # blocks of each stage; None: those of `depth`
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool):
        """[B, H, W, 3] normalised images -> [C2, C3, C4, C5], each [B, H/s, W/s, channels]."""
        if self.depth not in STAGES:
            raise ValueError(f"ResNet depth {self.depth} is not one of {sorted(STAGES)}")
        if self.style not in ("pytorch", "caffe"):
            raise ValueError(f"ResNet style {self.style!r} is neither 'pytorch' nor 'caffe'")
        stem, block = layers.ConvNorm, BasicBlock if self.depth < 50 else Bottleneck
        if self.remat:  # argument 2, counted from self, is `train`: a Python value
            stem, block = (nn.remat(part, static_argnums=(2,)) for part in (stem, block))
        x = stem(
            self.width,
            7,
            2,
            norm=self._norm(0),
            activation=nn.relu,
            dtype=self.dtype,
            name="stem",
        )(images, train)
        x = pool.max_pool(x, 3, stride=2)
        features = []
        for stage, blocks in enumerate(self.stages or STAGES[self.depth], start=1):
            for i in range(blocks):
                x = block(
                    self.width * 2 ** (stage - 1),
                    stride=2 if i == 0 and stage > 1 else 1,
                    style=self.style,
                    norm=self._norm(stage),
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x, train)
            if stage <= self.frozen_stages:
                x = lax.stop_gradient(x)
            features.append(x)
        return features

    def _norm(self, stage: int) -> str:
        frozen = self.frozen_stages > 0 and stage <= self.frozen_stages
        return "frozen" if frozen and self.norm in ("batch", "stored") else self.norm


def of(module: nn.Module) -> ResNet:
    """The ResNet of a detector with the fields of `fields.of_resnet`, `remat` and `dtype`."""
    return ResNet(
        module.depth,
        module.style,
        module.backbone_norm,
        module.frozen_stages,
        module.backbone_width,
        module.backbone_stages,
        remat=module.remat,
        dtype=module.dtype,
    )


def frozen(module: nn.Module) -> tuple[str, ...]:
    """Regexes of the leaves of the detector's `backbone` that training never changes."""
    return frozen_paths("backbone", module.backbone_norm, module.frozen_stages)


def frozen_paths(prefix: str, norm: str, frozen_stages: int) -> tuple[str, ...]:
    """Regexes of the leaves of a ResNet at path `prefix` that training never changes.

    They start with the collection: `params/...` or `batch_stats/...`.
    """
    paths = []
    if frozen_stages > 0:
        paths += [rf"\w+/{prefix}/stem/.*", rf"\w+/{prefix}/stage[1-{frozen_stages}]_.*"]
    if norm in ("stored", "frozen"):
        paths.append(rf"batch_stats/{prefix}/.*")
    if norm == "frozen":
        paths.append(rf"params/{prefix}/.*norm/.*")
    return tuple(paths)

"""The feature layers of SSD (arXiv:1512.02325, figure 2 and section 3.1).

Parameter paths: `l2_norm/scale`, `extra1/conv1/{conv,norm}`, `extra1/conv2/...`, ...; extra1 is
conv8_1 and conv8_2 of the paper.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers

xavier_uniform = nn.initializers.xavier_uniform()


class Extra(NamedTuple):
    """The second convolution of an extra layer; the first, 1x1, has half its channels."""

    width: int
    kernel_size: int
    stride: int
    padding: int  # px on every side

    def cells(self, cells: int) -> int:
        """The cells of the new map along an axis on which the old one has `cells`."""
        return (cells + 2 * self.padding - self.kernel_size) // self.stride + 1

    @property
    def covers(self) -> bool:
        """Whether the map has ceil(cells / stride) cells, whose strides are those of the layer."""
        return 2 * self.padding == self.kernel_size - 1


class L2Norm(nn.Module):
    """Scales the features of each cell to length 1, then each channel (ParseNet, arXiv:1506.04579).

    Cells without a feature above 0 stay zero and get no gradient.
    """

    initial_scale: float = 20.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):  # [B, H, W, D] -> [B, H, W, D]
        initial = nn.initializers.constant(self.initial_scale)
        scale = self.param("scale", initial, (x.shape[-1],))
        x = x.astype(jnp.float32)
        squares = jnp.square(x).sum(-1, keepdims=True)
        length = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
        return jnp.where(squares > 0, scale * x / length, 0.0).astype(self.dtype)


class SSDNeck(nn.Module):
    """Normalises conv4_3, and adds ever coarser maps to it and fc7."""

    extras: Sequence[Extra]
    norm: str = "none"  # of the extra layers
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(C4, C5) -> one map per level, finest first."""
        fine, x = features
        levels = [L2Norm(dtype=self.dtype, name="l2_norm")(fine), x]
        for i, extra in enumerate(self.extras):
            x = ExtraLayer(extra, self.norm, self.dtype, name=f"extra{i + 1}")(x, train)
            levels.append(x)
        return tuple(levels)


class ExtraLayer(nn.Module):
    """A 1x1 convolution and one that makes the map smaller, each with a ReLU."""

    extra: Extra
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(
            norm=self.norm, activation=nn.relu, kernel_init=xavier_uniform, dtype=self.dtype
        )
        width, kernel_size, stride, padding = self.extra
        x = layers.ConvNorm(width // 2, 1, name="conv1", **common)(x, train)
        conv = layers.ConvNorm(width, kernel_size, stride, padding, name="conv2", **common)
        return conv(x, train)

"""Flax building blocks: convolution, normalisation, and the two combined.

Norm modes, all with the same parameter paths:
  batch   batch statistics in training, running statistics otherwise
  stored  always running statistics; scale and bias are trained (mmdetection's `norm_eval`)
  frozen  always running statistics; scale and bias are constants (caffe ResNets)
  group   GroupNorm, without running statistics
  none    no norm; the convolution has a bias instead
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab.ops import conv as conv_lib
from detlab.ops import deform_conv as deform_conv_lib

NORMS = ("batch", "stored", "frozen", "group", "none")

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.1)  # darknet's

# The two initialisers of mmdetection's backbones and heads.
he_normal_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
normal_001 = nn.initializers.normal(0.01)


class Conv(nn.Module):
    """Convolution in NHWC, padded as in PyTorch by dilation * (k - 1) // 2 on every side.

    `padding` overrides these px.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3  # or (height, width)
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable = he_normal_out
    bias_init: Callable = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):  # [B, H, W, Cin] -> [B, H', W', features]
        size = self.kernel_size
        size = size if isinstance(size, tuple) else (size, size)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features))
        sides = None if self.padding is None else ((self.padding,) * 2,) * 2
        y = conv_lib.conv(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, sides, self.dilation
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class Norm(nn.Module):
    """Batch or group normalisation over NHWC; statistics in float32."""

    mode: str = "batch"
    momentum: float = 0.9  # weight of the old value: 0.1 in PyTorch's convention
    epsilon: float = 1e-5
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if self.mode == "group":
            return self._group_norm(x, scale, bias)
        if self.mode not in ("batch", "stored", "frozen"):
            raise ValueError(f"norm mode {self.mode!r} is not one of {', '.join(NORMS[:-1])}")
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if self.mode == "frozen":
            scale, bias = lax.stop_gradient((scale, bias))
        if self.mode == "batch" and train:
            values = x.astype(jnp.float32)
            mean = values.mean((0, 1, 2))
            var = jnp.square(values - mean).mean((0, 1, 2))
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))  # what PyTorch accumulates
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)

    def _group_norm(self, x, scale, bias):
        b, h, w, c = x.shape
        if c % self.groups:
            raise ValueError(f"{c} channels cannot be split into {self.groups} groups")
        values = x.astype(jnp.float32).reshape(b, h, w, self.groups, c // self.groups)
        mean = values.mean((1, 2, 4), keepdims=True)
        var = jnp.square(values - mean).mean((1, 2, 4), keepdims=True)
        values = (values - mean) * lax.rsqrt(var + self.epsilon)
        return (values.reshape(b, h, w, c) * scale + bias).astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution, norm, activation; by default the convolution has a bias only without a norm."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None  # as in `Conv`
    dilation: int = 1
    norm: str = "none"
    activation: Callable | None = None
    kernel_init: Callable = he_normal_out
    norm_groups: int = 32
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    use_bias: bool | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            use_bias=self.norm == "none" if self.use_bias is None else self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm != "none":
            x = Norm(
                self.norm,
                self.norm_momentum,
                self.norm_epsilon,
                self.norm_groups,
                dtype=self.dtype,
                name="norm",
            )(x, train)
        return x if self.activation is None else self.activation(x)


class DeformConv(nn.Module):
    """Deformable convolution of all levels of a pyramid, without bias, stride 1.

    Padded by (k - 1) // 2 on every side.  A single map is a pyramid of one level.
    """

    features: int
    kernel_size: int = 3
    deform_groups: int = 1  # blocks of input channels, each with its own offsets
    kernel_init: Callable = he_normal_out
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps, offsets):
        """([B, Hl, Wl, Cin], ...) and offsets -> ([B, Hl, Wl, features], ...).

        Offsets are [B, Hl, Wl, deform_groups * k * k * 2]: dy, dx in cells of each tap, row by row.
        """
        shape = (self.kernel_size, self.kernel_size, maps[0].shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)

        def one_image(maps, offsets):
            return deform_conv_lib.deform_conv_levels(
                maps,
                offsets,
                kernel,
                padding=(self.kernel_size - 1) // 2,
                deform_groups=self.deform_groups,
            )

        return jax.vmap(one_image)(tuple(x.astype(self.dtype) for x in maps), tuple(offsets))


class LevelScales(nn.Module):
    """A learned factor for each pyramid level, after a shared head (FCOS, section 3.2).

    Parameter paths: `scale0`, ..., counted from the finest level.
    """

    @nn.compact
    def __call__(self, maps):  # (P3, ...) -> (P3, ...)
        scales = [self.param(f"scale{i}", nn.initializers.ones, ()) for i in range(len(maps))]
        return tuple(x * scale for x, scale in zip(maps, scales, strict=True))


def prior_bias(probability: float) -> Callable:
    """Initial bias of a sigmoid classifier that predicts `probability` (RetinaNet, section 4.1)."""
    return nn.initializers.constant(-math.log((1 - probability) / probability))


def normalise(module: nn.Module, images: jax.Array) -> jax.Array:
    """Pixels [B, H, W, 3], uint8 or float, minus the channel means, divided by the deviations.

    Args:
      module: the detector with the fields `pixel_mean`, `pixel_std` and `dtype`.
    """
    mean, std = jnp.array(module.pixel_mean), jnp.array(module.pixel_std)
    return ((images.astype(jnp.float32) - mean) / std).astype(module.dtype)


def upsample(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest-neighbour upsampling: [B, h, w, D] -> [B, H, W, D] with `size` = (H, W).

    Cell i of the larger map copies cell floor(i * small / large).
    """
    height, width = x.shape[1:3]
    if size == (2 * height, 2 * width):  # avoids a gather, whose gradient is a scatter
        return x.repeat(2, axis=1).repeat(2, axis=2)
    rows = jnp.arange(size[0]) * height // size[0]
    columns = jnp.arange(size[1]) * width // size[1]
    return x[:, rows][:, :, columns]

"""Convolution in NHWC with a weight gradient that is fast on every platform.

XLA's CPU backend computes the weight gradient of a wide convolution slower than the convolution
itself (docs/performance.md).  Two rewrites avoid that without changing parameters: a 1x1
convolution is a matrix product, and the weight gradient of a wide 3x3 one is three of them.
"""

import functools
from typing import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = Sequence[tuple[int, int]]

# Input times output channels from which the gradient by matrix products wins on a CPU: measured
# even at 256 x 256 on 20x20 cells, 0.76 of the time on 40x40, and 0.6 at 512 x 512.
_WIDE = 256 * 256


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None):
    """2-D convolution.

    Args:
      x: [B, H, W, Cin].
      kernel: [kh, kw, Cin, Cout].
      stride: the same in both directions.
      padding: ((top, bottom), (left, right)); by default (k - 1) // 2 on every side, as in
        PyTorch.  "SAME" of XLA would pad even sizes at stride 2 on the bottom and right only.
    Returns:
      [B, H', W', Cout] with H' = (H + top + bottom - kh) // stride + 1.

    Reverse-mode differentiable; a wide 3x3 one has a gradient of its own and no forward mode.
    """
    kh, kw, cin, cout = kernel.shape
    if x.ndim != 4 or x.shape[3] != cin:
        raise ValueError(f"conv needs x of [B, H, W, {cin}] for kernel {kernel.shape}: {x.shape}")
    if padding is None:
        padding = (((kh - 1) // 2,) * 2, ((kw - 1) // 2,) * 2)
    padding = tuple(tuple(p) for p in padding)
    if (kh, kw) == (1, 1) and padding == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])
    if (kh, kw) == (3, 3) and cin * cout >= _WIDE:
        return _conv3x3(x, kernel, stride, padding)
    return _plain(x, kernel, stride, padding)


def _plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv3x3(x, kernel, stride, padding):
    return _plain(x, kernel, stride, padding)


def _conv3x3_forward(x, kernel, stride, padding):
    return _plain(x, kernel, stride, padding), (x, kernel)


def _conv3x3_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    _, vjp_x = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)

    def native(x, dy):
        _, vjp_kernel = jax.vjp(lambda k: _plain(x, k, stride, padding), kernel)
        return vjp_kernel(dy)[0]

    products = functools.partial(_kernel_gradient, kernel.shape, stride, padding)
    d_kernel = lax.platform_dependent(x, dy, cpu=products, default=native)
    return vjp_x(dy)[0], d_kernel


_conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _kernel_gradient(kernel_shape, stride, padding, x, dy):
    """d kernel[i, j] = sum over positions of x shifted by (i, j), outer product with dy.

    One matrix product a kernel row: its kw shifted copies of x stand side by side as channels.
    """
    kh, kw, cin, cout = kernel_shape
    height, width = dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def shifted(i, j):
        rows = slice(i, i + stride * (height - 1) + 1, stride)
        columns = slice(j, j + stride * (width - 1) + 1, stride)
        return x[:, rows, columns]  # [B, H', W', Cin]

    gradient = []
    for i in range(kh):
        copies = jnp.concatenate([shifted(i, j) for j in range(kw)], axis=-1)
        gradient.append(jnp.einsum("bhwc,bhwd->cd", copies, dy).reshape(kw, cin, cout))
    return jnp.stack(gradient)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None):
    """Convolution of each channel with a kernel of its own, as a sum over the cells of the kernel.

    XLA's CPU backend has no fast grouped convolution, least of all for its gradient
    (docs/performance.md); on accelerators its own is compiled.

    Args:
      x: [B, H, W, D].
      kernel: [kh, kw, 1, D].
      stride, padding: as in `conv`.
    Returns:
      [B, H', W', D].
    """
    kh, kw, one, channels = kernel.shape
    if x.ndim != 4 or x.shape[3] != channels or one != 1:
        raise ValueError(f"depthwise needs x of [B, H, W, {channels}], kernel [kh, kw, 1, D]")
    if padding is None:
        padding = (((kh - 1) // 2,) * 2, ((kw - 1) // 2,) * 2)
    padding = tuple(tuple(p) for p in padding)

    def native(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=_DIMENSIONS,
            feature_group_count=channels,
        )

    def shifted(x, kernel):
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        height = (x.shape[1] - kh) // stride + 1
        width = (x.shape[2] - kw) // stride + 1
        rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
        return sum(
            x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
            for i in range(kh)
            for j in range(kw)
        )

    return lax.platform_dependent(x, kernel, cpu=shifted, default=native)

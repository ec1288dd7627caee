"""Convolution in NHWC with a weight gradient that is fast on every platform.

XLA's CPU backend computes the weight gradient of a convolution several times slower than the
convolution itself (docs/performance.md).  Two rewrites avoid that without changing parameters:
a 1x1 convolution is a matrix product, and the weight gradient of a 3x3 one is nine of them.
"""

import functools
from typing import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = Sequence[tuple[int, int]]


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

    Reverse-mode differentiable; the 3x3 form has a gradient of its own and no forward mode.
    """
    kh, kw, cin, _ = kernel.shape
    if x.ndim != 4 or x.shape[3] != cin:
        raise ValueError(f"conv needs x of [B, H, W, {cin}] for kernel {kernel.shape}: {x.shape}")
    if padding is None:
        padding = (((kh - 1) // 2,) * 2, ((kw - 1) // 2,) * 2)
    padding = tuple(tuple(p) for p in padding)
    if (kh, kw) == (1, 1) and padding == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])
    if (kh, kw) == (3, 3):
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

    shifted = functools.partial(_kernel_gradient, kernel.shape, stride, padding)
    d_kernel = lax.platform_dependent(x, dy, cpu=shifted, default=native)
    return vjp_x(dy)[0], d_kernel


_conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _kernel_gradient(kernel_shape, stride, padding, x, dy):
    """d kernel[i, j] = sum over positions of x shifted by (i, j), outer product with dy."""
    kh, kw = kernel_shape[:2]
    height, width = dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def tap(i, j):
        rows = slice(i, i + stride * (height - 1) + 1, stride)
        columns = slice(j, j + stride * (width - 1) + 1, stride)
        return jnp.einsum("bhwc,bhwd->cd", x[:, rows, columns], dy)

    return jnp.stack([jnp.stack([tap(i, j) for j in range(kw)]) for i in range(kh)])

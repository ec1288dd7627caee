"""Convolution in NHWC with a weight gradient that is fast on every platform.

XLA's CPU backend is slower at the weight gradient of a wide convolution than at the convolution
itself (docs/performance.md).  CPUs therefore compute equivalent forms with the same parameters: a
1x1 convolution is a matrix product, the weight gradient of a wide 3x3 convolution is three matrix
products, and a depthwise convolution is a sum over the cells of its kernel.  Every other platform
compiles XLA's convolution and its gradients.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = Sequence[tuple[int, int]]

# From this many input times output channels, the gradient by matrix products is faster on a CPU.
# Measured: the same time at 256 x 256 on 20x20 cells, 0.76 of it on 40x40, and 0.6 at 512 x 512.
_WIDE = 256 * 256


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None):
    """2-D convolution.

    Args:
      x: [B, H, W, Cin].
      kernel: [kh, kw, Cin, Cout].
      stride: the same in both directions.
      padding: ((top, bottom), (left, right)); by default (k - 1) // 2 on every side, as in
        PyTorch.  XLA's "SAME" would pad even sizes at stride 2 on the bottom and right only.
    Returns:
      [B, H', W', Cout] with H' = (H + top + bottom - kh) // stride + 1.  Reverse-mode
      differentiable; 1x1 and wide 3x3 convolutions have no forward mode.
    Raises:
      ValueError: `x` does not fit the kernel.
    Example:
      >>> x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
      >>> conv(x, kernel)[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
      >>> conv(x, kernel, stride=2)[0, :, :, 0].tolist()
      [[4.0, 4.0], [4.0, 4.0]]
    """
    kh, kw, cin, cout = kernel.shape
    if x.ndim != 4 or x.shape[3] != cin:
        raise ValueError(f"conv with kernel {kernel.shape} needs x [B, H, W, {cin}], not {x.shape}")
    padding = _sides(kernel, padding)
    native = functools.partial(_native, stride, padding)
    if (kh, kw) == (1, 1) and padding == ((0, 0), (0, 0)):
        product = functools.partial(_product, stride)
        return _by_platform(product, _gradients_of(product), native, x, kernel)
    if (kh, kw) == (3, 3) and cin * cout >= _WIDE:
        gradients = functools.partial(_gradients_3x3, stride, padding)
        return _by_platform(native, gradients, native, x, kernel)
    return native(x, kernel)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None):
    """Convolves each channel with its own kernel.

    XLA's CPU backend is slow at grouped convolutions, and slowest at their gradients
    (docs/performance.md).

    Args:
      x: [B, H, W, D].
      kernel: [kh, kw, 1, D].
      stride, padding: as in `conv`.
    Returns:
      [B, H', W', D].  Reverse-mode differentiable.
    Raises:
      ValueError: `x` does not fit the kernel, or the kernel is not [kh, kw, 1, D].
    Example:
      >>> x, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 1, 2)) * jnp.array([1.0, 10.0])
      >>> depthwise(x, kernel, stride=2).tolist()
      [[[[4.0, 40.0], [4.0, 40.0]], [[4.0, 40.0], [4.0, 40.0]]]]
    """
    channels = kernel.shape[3]
    if x.ndim != 4 or x.shape[3] != channels or kernel.shape[2] != 1:
        raise ValueError(
            f"depthwise needs x [B, H, W, {channels}] and kernel [kh, kw, 1, {channels}], "
            f"not {x.shape} and {kernel.shape}"
        )
    padding = _sides(kernel, padding)
    native = functools.partial(_native, stride, padding)
    by_cell = functools.partial(_depthwise_by_cell, stride, padding)
    return _by_platform(by_cell, _gradients_of(by_cell), native, x, kernel)


def _sides(kernel, padding):
    """The padding as tuples, by default (k - 1) // 2 on every side."""
    if padding is None:
        padding = [((k - 1) // 2,) * 2 for k in kernel.shape[:2]]
    return tuple(tuple(p) for p in padding)


def _gradients_of(function: Callable) -> Callable:
    """(x, kernel, dy) -> (dx, dkernel) of `function(x, kernel)`."""

    def gradients(x, kernel, dy):
        return jax.vjp(function, x, kernel)[1](dy)

    return gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _by_platform(cpu, cpu_gradients, native, x, kernel):
    """`cpu(x, kernel)` with `cpu_gradients` on a CPU, `native(x, kernel)` with its own elsewhere.

    The platform is chosen separately in the forward and in the backward pass: differentiating a
    single choice would keep the intermediate values of both programs.
    """
    if cpu is native:  # only the gradients differ: trace one program
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=native)


def _by_platform_forward(cpu, cpu_gradients, native, x, kernel):
    return _by_platform(cpu, cpu_gradients, native, x, kernel), (x, kernel)


def _by_platform_backward(cpu, cpu_gradients, native, inputs, dy):
    elsewhere = _gradients_of(native)
    return lax.platform_dependent(*inputs, dy, cpu=cpu_gradients, default=elsewhere)


_by_platform.defvjp(_by_platform_forward, _by_platform_backward)


def _native(stride, padding, x, kernel):
    """XLA's convolution; `kernel` [kh, kw, Cin / groups, Cout] sets the number of groups."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[3] // kernel.shape[2],
    )


def _product(stride, x, kernel):
    return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])


def _gradients_3x3(stride, padding, x, kernel, dy):
    _, vjp_x = jax.vjp(lambda x: _native(stride, padding, x, kernel), x)
    return vjp_x(dy)[0], _kernel_gradient(kernel.shape, stride, padding, x, dy)


def _kernel_gradient(kernel_shape, stride, padding, x, dy):
    """Gradient of kernel[i, j]: sum over positions of x shifted by (i, j), outer product with dy.

    One matrix product for each kernel row, on kw shifted copies of x concatenated as channels.
    """
    kh, kw, cin, cout = kernel_shape
    height, width = dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    gradient = []
    for i in range(kh):
        copies = [_shifted(x, i, j, stride, height, width) for j in range(kw)]
        copies = jnp.concatenate(copies, axis=-1)  # [B, H', W', kw Cin]
        gradient.append(jnp.einsum("bhwc,bhwd->cd", copies, dy).reshape(kw, cin, cout))
    return jnp.stack(gradient)


def _depthwise_by_cell(stride, padding, x, kernel):
    kh, kw = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height = (x.shape[1] - kh) // stride + 1
    width = (x.shape[2] - kw) // stride + 1
    return sum(
        _shifted(x, i, j, stride, height, width) * kernel[i, j, 0]
        for i in range(kh)
        for j in range(kw)
    )


def _shifted(x, i, j, stride, height, width):
    """The values [B, H', W', C] of padded `x` under cell (i, j) of the kernel at each position."""
    rows = slice(i, i + stride * (height - 1) + 1, stride)
    columns = slice(j, j + stride * (width - 1) + 1, stride)
    return x[:, rows, columns]

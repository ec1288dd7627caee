"""Convolution in NHWC with gradients that are fast on every platform.

XLA's CPU backend is slow at some convolutions and at many of their gradients
(docs/performance.md).  CPUs therefore compute equivalent forms with the same parameters, chosen by
the shapes: a 1x1 convolution is a matrix product, and so is each row of the kernel on a map with
fewer cells than the kernel; an image of three channels gets a fourth, of zeros; a weight gradient
is one product per row of the kernel; the input gradient of a small map is one product whose columns
are added up; a depthwise convolution is a sum over the cells of its kernel.  Every other platform
compiles XLA's convolution and its gradients.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_FEW_POSITIONS = 400  # of an output whose kernel gradient is one product: 20x20
Padding = Sequence[tuple[int, int]]


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: Padding | None = None,
    dilation: int = 1,
):
    """2-D convolution.

    Args:
      x: [B, H, W, Cin].
      kernel: [kh, kw, Cin, Cout].
      stride: the same in both directions.
      padding: ((top, bottom), (left, right)); by default dilation * (k - 1) // 2 on every side, as
        in PyTorch.  XLA's "SAME" would pad even sizes at stride 2 on the bottom and right only.
      dilation: px between the cells of the kernel, the same in both directions.
    Returns:
      [B, H', W', Cout] with H' = (H + top + bottom - dilation (kh - 1) - 1) // stride + 1.
      Reverse-mode differentiable; convolutions with a form for CPUs have no forward mode.
    Raises:
      ValueError: `x` does not fit the kernel.
    Example:
      >>> x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
      >>> conv(x, kernel)[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
      >>> conv(x, kernel, stride=2)[0, :, :, 0].tolist()
      [[4.0, 4.0], [4.0, 4.0]]
    """
    cin = kernel.shape[2]
    if x.ndim != 4 or x.shape[3] != cin:
        raise ValueError(f"conv with kernel {kernel.shape} needs x [B, H, W, {cin}], not {x.shape}")
    padding = _sides(kernel, padding, dilation)
    if dilation > 1:  # XLA's own is as fast on a CPU as a sum of products (the fc6 of SSD)
        return _native(stride, padding, x, kernel, dilation)
    forms = _forms(x.shape, kernel.shape, stride, padding)
    if x.dtype.itemsize < 4:  # the partial sums of the forms would be rounded
        forms = _XLA
    return _conv(forms, stride, padding, x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))  # one trace for all layers of equal shapes
def _conv(forms, stride, padding, x, kernel):
    native = functools.partial(_native, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        product = functools.partial(_product, stride)
        return _by_platform(product, _gradients_of(product), native, x, kernel)
    if not any(forms):
        return native(x, kernel)
    forward = native
    if forms.rows:
        forward = functools.partial(_by_rows, stride, padding)
    elif forms.fourth_channel:
        forward = functools.partial(_with_fourth_channel, stride, padding)
    gradients = functools.partial(_gradients, forms, stride, padding)
    return _by_platform(forward, gradients, native, x, kernel)


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


def _sides(kernel, padding, dilation=1):
    """The padding as tuples, by default dilation * (k - 1) // 2 on every side."""
    if padding is None:
        padding = [(dilation * (k - 1) // 2,) * 2 for k in kernel.shape[:2]]
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


def _native(stride, padding, x, kernel, dilation=1):
    """XLA's convolution; `kernel` [kh, kw, Cin / groups, Cout] sets the number of groups."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[3] // kernel.shape[2],
    )


def _product(stride, x, kernel):
    return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])


class _Forms(NamedTuple):
    """How CPUs compute a convolution, where not by XLA's own."""

    rows: bool  # the result, by matrix products
    fourth_channel: bool  # the result, from an image with a channel of zeros
    kernel_gradient: bool  # by matrix products
    input_gradient: bool


_XLA = _Forms(False, False, False, False)


def _forms(x_shape, kernel_shape, stride, padding) -> _Forms:
    """Which forms to use: thresholds fitted to the shapes of our detectors.

    They were measured in float32 with `benchmarks.convolutions`.  The batch is that of all devices,
    or one under `vmap`.
    """
    batch, height, width, _ = x_shape
    kh, kw, cin, cout = kernel_shape
    out_height, out_width = _output_size((height, width), (kh, kw), stride, padding)
    if min(out_height, out_width) < 1 or min(min(sides) for sides in padding) < 0:
        return _XLA
    cells, weights = out_height * out_width, cin * cout
    positions = batch * cells
    # On a map with fewer cells than the kernel, XLA swaps the two and leaves its fast path.
    rows = height * width < kh * kw
    # XLA takes up to ten times as long with three channels and these numbers of outputs.
    fourth_channel = cin == 3 and (16 < cout < 48 or 64 < cout < 96)
    if cin == 3:
        kernel_gradient = cout >= 48
    elif stride > 1:
        kernel_gradient = weights >= 48 * 96
    else:  # XLA is slow with many weights, with few positions, and on large maps
        kernel_gradient = (
            weights >= 128 * 256
            or (weights >= 128 * 128 and positions <= 100)
            or (weights >= 32 * 64 and cells >= 6400)
        )
    # XLA transposes the kernel, which takes longer than the products of a small map.
    small = positions <= 256 or (positions <= 400 and cout >= 512)
    input_gradient = cells < kh * kw or (cout >= 128 and small)
    return _Forms(rows, fourth_channel, kernel_gradient, input_gradient)


def _output_size(size, kernel_size, stride, padding):
    return tuple(
        (n + sum(sides) - k) // stride + 1
        for n, k, sides in zip(size, kernel_size, padding, strict=True)
    )


def _gradients(forms, stride, padding, x, kernel, dy):
    """(dx, dkernel), each in the form that `forms` chooses."""
    native = functools.partial(_native, stride, padding)
    if forms.kernel_gradient:
        dkernel = _kernel_gradient(kernel.shape, stride, padding, x, dy)
    else:
        dkernel = jax.vjp(lambda kernel: native(x, kernel), kernel)[1](dy)[0]
    if forms.input_gradient:
        dx = _input_gradient(x.shape, stride, padding, kernel, dy)
    else:
        dx = jax.vjp(lambda x: native(x, kernel), x)[1](dy)[0]
    return dx, dkernel


def _by_rows(stride, padding, x, kernel):
    """The convolution as one matrix product for each row of the kernel."""
    kh, kw, cin, cout = kernel.shape
    height, width = _output_size(x.shape[1:3], (kh, kw), stride, padding)
    return sum(
        jnp.einsum("bhwc,cd->bhwd", copies, kernel[i].reshape(kw * cin, cout))
        for i, copies in enumerate(_row_copies(kernel.shape, stride, padding, x, height, width))
    )


def _with_fourth_channel(stride, padding, x, kernel):
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)))
    return _native(stride, padding, x, jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0))))


def _kernel_gradient(kernel_shape, stride, padding, x, dy):
    """Gradient of kernel[i, j]: sum over positions of x shifted by (i, j), outer product with dy.

    One matrix product for each row of the kernel, or a single one if the copies of x are small.
    """
    rows = list(_row_copies(kernel_shape, stride, padding, x, *dy.shape[1:3]))
    if math.prod(dy.shape[:-1]) <= _FEW_POSITIONS:
        rows = [jnp.concatenate(rows, axis=-1)]
    transposed = dy.reshape(-1, dy.shape[-1]).T  # once, instead of the wider copies
    products = [transposed @ copies.reshape(-1, copies.shape[-1]) for copies in rows]
    return jnp.concatenate(products, axis=1).T.reshape(kernel_shape)


def _row_copies(kernel_shape, stride, padding, x, height, width):
    """For each row of the kernel: kw shifted copies of x as channels, [B, H', W', kw Cin]."""
    kh, kw = kernel_shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    for i in range(kh):
        copies = [_shifted(x, i, j, stride, height, width) for j in range(kw)]
        yield jnp.concatenate(copies, axis=-1)


def _input_gradient(x_shape, stride, padding, kernel, dy):
    """Gradient of x: the product of dy with every kernel[i, j], added at the cells it came from."""
    kh, kw = kernel.shape[:2]
    height, width = dy.shape[1:3]
    (top, bottom), (left, right) = padding
    padded = x_shape[1] + top + bottom, x_shape[2] + left + right
    columns = jnp.einsum("bhwd,ijcd->ijbhwc", dy, kernel)
    zero = jnp.zeros((), dy.dtype)

    def placed(i, j):
        sides = [
            (first, size - first - stride * (count - 1) - 1, stride - 1)
            for first, size, count in zip((i, j), padded, (height, width), strict=True)
        ]
        return lax.pad(columns[i, j], zero, ((0, 0, 0), *sides, (0, 0, 0)))

    dx = sum(placed(i, j) for i in range(kh) for j in range(kw))
    return dx[:, top : top + x_shape[1], left : left + x_shape[2]]


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

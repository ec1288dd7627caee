"""Deformable convolution v1 (arXiv:1703.06211, eq. 2) and v2 (arXiv:1811.11168, eq. 1).

Every tap of the kernel reads the map at its regular position plus an offset, by bilinear
interpolation; v2 also multiplies each tap by a mask.  The map is 0 outside: a sample within one
cell of the border is interpolated with 0; a sample farther out is 0 and has no gradient.

The usual implementations build the matrix of all samples (im2col), 155 MB for a map of 100x168x256.
Here one part of it at a time is computed, multiplied, and recomputed for the gradient: on CPUs one
row of output cells, which stays in the cache; elsewhere one tap, which gives large products.

Differentiable in reverse mode only.

Letters: P output cells, T = kh * kw taps, E deform groups, Q groups.
"""

import functools

import jax
import jax.numpy as jnp
from jax import custom_batching, lax

from detlab.ops import sample


def deform_conv(
    x,
    offsets,
    kernel,
    mask=None,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    deform_groups: int = 1,
):
    """Deformable convolution of one image; x, offsets, kernel and mask all get gradients.

    Args:
      x: [H, W, Cin].
      offsets: [H', W', E * T * 2] dy, dx in cells of x, for each tap in row order, for each deform
        group; H' = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1.
      kernel: [kh, kw, Cin / groups, Cout].
      mask: [H', W', E * T] weights of the taps, after the sigmoid (v2); None for v1.
      stride, padding, dilation: the same along both axes; padding on all sides.
      groups: number of channel blocks of x and of the result; each block of the result reads the
        same block of x.
      deform_groups: E, number of channel blocks of x with separate offsets.
    Returns:
      [H', W', Cout], dtype of x.  Intermediate arrays: x with a border of one cell; index and
      weight of the 4 cells of each sample, [P, T, E, 4]; samples, [W', T, Cin] on a CPU, [P, Cin]
      elsewhere.
    Raises:
      ValueError: shapes and groups do not fit together.
    Example:
      Each cell reads half a cell to its right; the map is 0 outside.
      >>> x = jnp.array([1.0, 2, 3]).reshape(1, 3, 1)
      >>> offsets = jnp.broadcast_to(jnp.array([0, 0.5]), (1, 3, 2))  # dy, dx
      >>> deform_conv(x, offsets, jnp.ones((1, 1, 1, 1)), padding=0).ravel().tolist()
      [1.5, 2.5, 1.5]
    """
    masks = None if mask is None else (mask,)
    return deform_conv_levels(
        (x,), (offsets,), kernel, masks, stride, padding, dilation, groups, deform_groups
    )[0]


def deform_conv_levels(
    maps,
    offsets,
    kernel,
    masks=None,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    deform_groups: int = 1,
):
    """`deform_conv` of all maps of a pyramid with one kernel, in one loop over all cells.

    Calling `deform_conv` for each level gives the same results, but XLA then compiles the loop and
    its gradient once per level, a second or two each.

    Args:
      maps: [H, W, Cin] for each level.
      offsets: [H', W', E * T * 2] for each level.
      kernel: [kh, kw, Cin / groups, Cout], shared by all levels.
      masks: [H', W', E * T] for each level, or None.
      stride, padding, dilation, groups, deform_groups: as in `deform_conv`, for all levels.
    Returns:
      [H', W', Cout] for each level, dtype of its map.  The intermediate arrays of `deform_conv`
      hold all levels together; on a CPU their W' is that of the first non-empty level.
    Raises:
      ValueError: shapes and groups do not fit together, or the numbers of levels differ.
    Example:
      Two levels, of 1x2 and 1x1 cells, without offsets and with the kernel 10.
      >>> maps = jnp.array([1.0, 2]).reshape(1, 2, 1), jnp.array([3.0]).reshape(1, 1, 1)
      >>> offsets = jnp.zeros((1, 2, 2)), jnp.zeros((1, 1, 2))
      >>> out = deform_conv_levels(maps, offsets, jnp.full((1, 1, 1, 1), 10.0), padding=0)
      >>> [level.ravel().tolist() for level in out]
      [[10.0, 20.0], [30.0]]
    """
    maps, offsets = (tuple(map(jnp.asarray, values)) for values in (maps, offsets))
    masks = (None,) * len(maps) if masks is None else masks
    if not len(maps) == len(offsets) == len(masks):
        raise ValueError(
            f"maps, offsets and masks need one entry per level, but have {len(maps)}, "
            f"{len(offsets)} and {len(masks)}"
        )
    kernel = jnp.asarray(kernel)
    kh, kw, depth, cout = kernel.shape
    taps = kh * kw
    sizes, cells, corners, start = [], [], [], 0
    for x, level_offsets, mask in zip(maps, offsets, masks, strict=True):
        fits = x.ndim == 3 and x.shape[2] == depth * groups and x.shape[2] % deform_groups == 0
        if not fits or cout % groups:
            raise ValueError(
                f"x {x.shape} must be [H, W, Cin] and kernel {kernel.shape} [kh, kw, Cin / groups, "
                f"Cout], Cin and Cout multiples of groups {groups}, and Cin a multiple of "
                f"deform_groups {deform_groups}"
            )
        size = tuple(
            (s + 2 * padding - dilation * (k - 1) - 1) // stride + 1
            for s, k in zip(x.shape[:2], (kh, kw), strict=True)
        )
        for name, array, per_tap in (("offsets", level_offsets, 2), ("mask", mask, 1)):
            expected = (*size, deform_groups * taps * per_tap)
            if array is not None and array.shape != expected:
                raise ValueError(f"{name} must be {expected}, not {array.shape}")
        sizes.append(size)
        if 0 in size:
            continue
        index, weight = _corners(
            x.shape, level_offsets, (kh, kw), size, stride, padding, dilation, deform_groups
        )
        if mask is not None:
            mask = mask.reshape(-1, deform_groups, taps).swapaxes(1, 2)  # [P, T, E]
            weight *= mask[..., None]
        corners.append((start + index, weight))
        # A ring of zeros: no sample reads beyond it.
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0))).reshape(-1, x.shape[2] // deform_groups)
        cells.append(padded)
        start += len(padded)
    if not cells:
        return tuple(jnp.zeros((*size, cout), x.dtype) for size, x in zip(sizes, maps, strict=True))

    width = next(size[1] for size in sizes if 0 not in size)
    index, weight = (jnp.concatenate(parts) for parts in zip(*corners, strict=True))  # [P, T, E, 4]
    fill = ((0, -len(index) % width), (0, 0), (0, 0), (0, 0))  # completes the last row
    kernel = kernel.reshape(taps, depth, groups, cout // groups).swapaxes(1, 2)
    out = _convolve(
        width, jnp.concatenate(cells), jnp.pad(index, fill), jnp.pad(weight, fill), kernel
    )  # [P, Cout]
    results, start = [], 0
    for size, x in zip(sizes, maps, strict=True):
        end = start + size[0] * size[1]
        results.append(out[start:end].reshape(*size, cout).astype(x.dtype))
        start = end
    return tuple(results)


def _corners(shape, offsets, kernel_size, size, stride, padding, dilation, deform_groups):
    """`Corners` [P, T, E, 4] into the rows of the padded map, [(H + 2) (W + 2) E, Cin / E]."""
    offsets = offsets.astype(jnp.promote_types(offsets.dtype, jnp.float32))
    kh, kw = kernel_size
    offsets = offsets.reshape(*size, deform_groups, kh, kw, 2)

    def positions(axis):
        cells = jnp.arange(size[axis]) * stride - padding
        taps = jnp.arange(kernel_size[axis]) * dilation
        regular = cells[:, None] + taps  # [H' or W', kh or kw]
        others = (1, 2, 4) if axis == 0 else (0, 2, 3)
        return jnp.expand_dims(regular, others) + offsets[..., axis]  # [H', W', E, kh, kw]

    y, x = positions(0), positions(1)
    height, width = shape[:2]
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    # Samples outside read the corner of the ring: value 0, and `where` keeps the gradient 0.
    y, x = jnp.where(inside, y + 1, 0), jnp.where(inside, x + 1, 0)
    y, x = (v.reshape(-1, deform_groups, kh * kw).swapaxes(1, 2) for v in (y, x))
    index, weight = sample.corners(y, x, height + 2, width + 2)
    group = jnp.arange(deform_groups)[:, None]
    return sample.Corners(index * deform_groups + group, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(width, cells, index, weight, kernel):
    """[P, Cout]: samples of `cells` times `kernel` [T, Q, Cin / Q, Cout / Q], summed over taps."""
    return lax.platform_dependent(
        cells,
        index,
        weight,
        kernel,
        cpu=custom_batching.sequential_vmap(functools.partial(_forward_rows, width)),
        default=_forward_taps,
    )


def _convolve_forward(width, *arrays):
    return _convolve(width, *arrays), arrays


def _convolve_backward(width, residuals, dy):
    d_cells, d_weight, d_kernel = lax.platform_dependent(
        *residuals,
        dy,
        cpu=custom_batching.sequential_vmap(functools.partial(_backward_rows, width)),
        default=_backward_taps,
    )
    return d_cells, None, d_weight, d_kernel


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _forward_rows(width, cells, index, weight, kernel):
    """One row of `width` output cells at a time."""

    def row(corners):
        return _product(cells, *corners, kernel)

    out = lax.map(row, (_rows(index, width), _rows(weight, width)))
    return out.reshape(-1, out.shape[-1])


def _backward_rows(width, cells, index, weight, kernel, dy):
    def step(totals, row):
        d_cells, d_kernel = totals
        d_cells, d_weight, more = _gradients(d_cells, cells, *row, kernel, sequential=True)
        return (d_cells, d_kernel + more), d_weight

    accumulator = _accumulator(cells)
    totals = jnp.zeros(cells.shape, accumulator), jnp.zeros(kernel.shape, accumulator)
    rows = tuple(_rows(values, width) for values in (index, weight, dy))
    (d_cells, d_kernel), d_weight = lax.scan(step, totals, rows)
    d_weight = d_weight.reshape(weight.shape)
    return d_cells.astype(cells.dtype), d_weight, d_kernel.astype(kernel.dtype)


def _forward_taps(cells, index, weight, kernel):
    """One tap at a time."""

    def step(total, tap):
        index, weight, kernel = tap
        return total + _product(cells, index, weight, kernel), None

    _, groups, _, depth = kernel.shape
    total = jnp.zeros((len(index), groups * depth), _accumulator(cells))
    return lax.scan(step, total, (*_taps(index, weight), kernel[:, None]))[0]


def _backward_taps(cells, index, weight, kernel, dy):
    def step(d_cells, tap):
        index, weight, kernel = tap
        d_cells, d_weight, d_kernel = _gradients(
            d_cells, cells, index, weight, dy, kernel, sequential=False
        )
        return d_cells, (d_weight[:, 0], d_kernel[0])

    start = jnp.zeros(cells.shape, _accumulator(cells))
    d_cells, (d_weight, d_kernel) = lax.scan(step, start, (*_taps(index, weight), kernel[:, None]))
    return d_cells.astype(cells.dtype), d_weight.swapaxes(0, 1), d_kernel.astype(kernel.dtype)


def _rows(values, width):
    """[P, ...] -> [H', W', ...]."""
    return values.reshape(-1, width, *values.shape[1:])


def _taps(*values):
    """[P, T, ...] -> [T, P, 1, ...]."""
    return tuple(v.swapaxes(0, 1)[:, :, None] for v in values)


def _product(cells, index, weight, kernel):
    """Output [P, Cout] of one part; P and T count its cells and taps."""
    columns = _columns(cells, index, weight, kernel)
    out = _each_group(_multiply, columns, _matrix(kernel))  # [Q, P, Cout / Q]
    return jnp.moveaxis(out, 0, 1).reshape(len(index), -1)


def _gradients(d_cells, cells, index, weight, dy, kernel, sequential):
    """Gradients of one part for its `dy` [P, Cout].

    `d_cells` plus the share of the part, d_weight [P, T, E, 4], d_kernel.
    """
    corners = sample.Corners(index, weight)
    taps, groups, depth, _ = kernel.shape
    dy = jnp.moveaxis(dy.reshape(len(dy), groups, -1), 1, 0)  # [Q, P, Cout / Q]
    columns = _columns(cells, index, weight, kernel)
    d_kernel = _each_group(lambda a, b: _multiply(a.T, b), columns, dy)
    d_columns = _each_group(lambda a, b: _multiply(a, b.T), dy, _matrix(kernel))
    d_samples = d_columns.reshape(groups, len(index), taps, depth)
    d_samples = jnp.moveaxis(d_samples, 0, 2).reshape(*index.shape[:3], -1)  # [P, T, E, Cin / E]
    d_weight = sample.weight_gradient(cells, corners, d_samples, sequential)
    d_cells = sample.scatter_add(d_cells, corners, d_samples, sequential)
    d_kernel = d_kernel.reshape(groups, taps, depth, -1).swapaxes(0, 1)
    return d_cells, d_weight.astype(weight.dtype), d_kernel


def _columns(cells, index, weight, kernel):
    """[Q, P, T Cin / Q]: the samples that make up each output cell.

    One gather per tap: a single gather with a tap axis takes XLA:CPU three times as long.
    """
    taps, groups, depth, _ = kernel.shape
    columns = []
    for tap in range(taps):
        samples = sample.gather(cells, sample.Corners(index[:, tap], weight[:, tap]))
        columns.append(samples.astype(kernel.dtype).reshape(len(index), groups, depth))
    return jnp.moveaxis(jnp.concatenate(columns, -1), 1, 0)


def _matrix(kernel):
    """[T, Q, Cin / Q, Cout / Q] -> [Q, T Cin / Q, Cout / Q]."""
    return kernel.swapaxes(0, 1).reshape(kernel.shape[1], -1, kernel.shape[3])


def _multiply(a, b):
    return jnp.matmul(a, b, preferred_element_type=_accumulator(a))


def _each_group(product, *arrays):
    """`product` of each group (first axis).  One group is not batched: XLA:CPU would be slower."""
    if len(arrays[0]) == 1:
        return product(*(array[0] for array in arrays))[None]
    return jax.vmap(product)(*arrays)


def _accumulator(x):
    return jnp.promote_types(x.dtype, jnp.float32)

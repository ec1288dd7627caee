"""RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) on one map or on a feature pyramid.

Each RoI is divided into bins, and each bin is the mean of bilinear samples.  The op is "aligned",
like mmcv's RoIAlign and detectron2's ROIAlignV2: the value of cell (i, j) belongs to its centre,
(i + 0.5, j + 0.5) cells, so coordinates are shifted by -0.5.  Samples more than one cell outside
the map are 0; samples closer to it are clipped to its border.

`sampling_ratio` is the number of samples per bin along each axis, 2 by default.  0 takes exactly
ceil(bin size in cells) samples for each RoI, as mmdetection's models were trained.  The loop over
them has a data-dependent length, so it takes no more memory than a fixed number.

RoIs get no gradient, as in the reference code.  Differentiable in reverse mode only.

Letters: R RoIs, L levels, D channels, S bins along one side.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import custom_batching, lax

from detlab.ops import sample

# Samples of every bin in one step on accelerators.  Each step of adaptive sampling, a loop with a
# data-dependent end, waits for the host.
_AT_ONCE = 4


def roi_align(
    features,
    rois,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 2,
    max_samples: int | None = None,
):
    """RoIAlign on one map.

    Args:
      features: [H, W, D], of one image.
      rois: [R, 4] xyxy px; need not lie inside the image.
      output_size: S, or (bins along y, bins along x).
      spatial_scale: cells per px: 1 / stride.
      sampling_ratio: samples per bin along each axis; 0: ceil(bin size in cells).  A RoI without
        height or width then has no samples, and its result is 0.
      max_samples: the most samples per bin along one axis with sampling_ratio 0; a RoI that would
        need more gets `max_samples`, evenly spread.  The default, ceil(2 max(H, W) / S), is enough
        for a RoI twice as long as the longer side of the map; no RoI inside the image needs more.
    Returns:
      [R, Sy, Sx, D], dtype of the features.  Memory: see `multilevel`.
    Raises:
      ValueError: invalid shapes, `output_size` or `sampling_ratio`.
    Example:
      Each cell holds the number of its column; the RoI is the whole map, in 2x2 bins.
      >>> features = jnp.broadcast_to(jnp.arange(4.0)[:, None], (4, 4, 1))
      >>> roi_align(features, jnp.array([[0.0, 0, 4, 4]]), 2, spatial_scale=1.0)[0, ..., 0].tolist()
      [[0.5, 2.5], [0.5, 2.5]]
    """
    valid = jnp.ones(len(rois), bool)
    level = jnp.zeros(len(rois), jnp.int32)
    return _multilevel(
        (features,), rois, valid, level, (spatial_scale,), output_size, sampling_ratio, max_samples
    )


def multilevel(
    features: Sequence[jax.Array],
    rois,
    valid,
    strides: Sequence[int],
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int = 2,
    finest_scale: float = 56,
    max_samples: int | None = None,
    known=None,
):
    """RoIAlign on a pyramid, each RoI on the level for its size (see `levels`).

    If the batch is sharded, call it per device: a CPU processes the images one by one, and with
    sampling_ratio 0 the devices would have to agree on the length of the loop.

    Args:
      features: L maps [Hl, Wl, D] of one image, finest first.
      rois: [R, 4] xyxy px.
      valid: [R] bool; results of invalid RoIs are 0 without gradient, whatever the coordinates.
      strides: of the L levels, px.
      output_size, sampling_ratio, max_samples: as in `roi_align`; the default of `max_samples` is
        that of the largest level.
      finest_scale: as in `levels`.
      known: [R, Sy, Sx, D] or None: the result, if it has been computed before.  It is returned as
        it is, without a gradient of its own, and the maps get the gradient of these RoIs alone.
    Returns:
      [R, Sy, Sx, D], dtype of the features.  Memory: on CPU no other array is as large; elsewhere
      the pyramid is copied once, and one sample of every bin takes as much as the result.
    Raises:
      ValueError: invalid shapes, `output_size` or `sampling_ratio`.
    Example:
      A RoI of 8 px is read from the finest level, one of 16 px from the next.
      >>> pyramid = jnp.full((8, 8, 1), 10.0), jnp.full((4, 4, 1), 20.0)
      >>> rois = jnp.array([[0.0, 0, 8, 8], [0, 0, 16, 16]])
      >>> multilevel(pyramid, rois, jnp.ones(2, bool), (4, 8), 1, finest_scale=8).ravel().tolist()
      [10.0, 20.0]
    """
    if len(features) != len(strides):
        raise ValueError(
            f"strides need one entry per level of features, {len(features)}, not {tuple(strides)}"
        )
    level = levels(rois, len(features), finest_scale)
    scales = tuple(1 / stride for stride in strides)
    return _multilevel(
        features, rois, valid, level, scales, output_size, sampling_ratio, max_samples, known
    )


def levels(rois, num_levels: int, finest_scale: float = 56):
    """Level [R] int32 of `rois` [R, 4] (Feature Pyramid Networks, arXiv:1612.03144, eq. 1).

    A RoI with sqrt(area) below 2 * finest_scale px belongs to level 0, and each doubling adds one
    level.  k0 = 4 for 224 px in the equation means finest_scale 56 with P2 as level 0.  A RoI
    without area belongs to level 0.  As in mmdetection, 1e-6 is added inside the logarithm.

    Example:
      >>> levels(jnp.array([[0.0, 0, 111, 111], [0, 0, 112, 112], [0, 0, 224, 224]]), 4).tolist()
      [0, 1, 2]
    """
    rois = jnp.asarray(rois)
    size = rois[:, 2:] - rois[:, :2]
    side = jnp.sqrt(jnp.maximum(size[:, 0] * size[:, 1], 0))
    level = jnp.floor(jnp.log2(side / finest_scale + 1e-6))
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


class _Grid(NamedTuple):
    """Sample positions of each RoI, in cells of its level; y before x."""

    start: jax.Array  # [R, 2] upper left corner
    bin_size: jax.Array  # [R, 2]
    count: jax.Array  # [R, 2] int32 samples of a bin
    size: jax.Array  # [R, 2] int32 cells of the map
    base: jax.Array  # [R] int32 row of the map's first cell in the matrix of cells


class _Static(NamedTuple):
    """The static arguments of a program."""

    output: tuple[int, int]
    ratio: int
    shapes: tuple[tuple[int, int, int], ...]
    dtype: jnp.dtype  # of the features

    @property
    def accumulator(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)


def _multilevel(features, rois, valid, level, scales, output_size, ratio, max_samples, known=None):
    output = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    features = tuple(jnp.asarray(f) for f in features)
    rois, valid = jnp.asarray(rois), jnp.asarray(valid)
    shapes = tuple(f.shape for f in features)
    if any(len(s) != 3 or s[2] != shapes[0][2] for s in shapes):
        raise ValueError(f"features must be [H, W, D] with the same D on all levels, not {shapes}")
    if rois.ndim != 2 or rois.shape[1] != 4 or valid.shape != rois.shape[:1]:
        raise ValueError(f"rois must be [R, 4] and valid [R], not {rois.shape} and {valid.shape}")
    if len(output) != 2 or min(output) < 1 or ratio < 0:
        raise ValueError(
            f"output_size must be one or two numbers of at least 1, not {output_size}, and "
            f"sampling_ratio at least 0, not {ratio}"
        )
    if max_samples is None:
        max_samples = -(-2 * max(max(s[:2]) for s in shapes) // min(output))
    static = _Static(output, ratio, shapes, jnp.result_type(*features))
    if len(rois) == 0 or min(map(min, shapes)) == 0:
        return jnp.zeros((len(rois), *output, shapes[0][2]), static.dtype)

    dtype = jnp.promote_types(rois.dtype, jnp.float32)
    rois = lax.stop_gradient(jnp.where(valid[:, None], rois, 0).astype(dtype))
    scale = jnp.array(scales, dtype)[level][:, None]
    start, end = rois[:, 1::-1] * scale - 0.5, rois[:, :1:-1] * scale - 0.5  # [R, 2] y, x
    bin_size = (end - start) / jnp.array(output, dtype)
    if ratio:
        count = jnp.full(bin_size.shape, ratio, jnp.int32)
    else:
        count = jnp.clip(jnp.ceil(bin_size).astype(jnp.int32), 0, max_samples)
    cells = [height * width for height, width, _ in shapes]
    grid = _Grid(
        start,
        bin_size,
        count,
        size=jnp.array([s[:2] for s in shapes], jnp.int32)[level],
        base=jnp.array([sum(cells[:i]) for i in range(len(cells))], jnp.int32)[level],
    )
    level = jnp.where(valid, level, len(features))  # a level without a map: no samples
    features = tuple(f.astype(static.dtype) for f in features)
    if known is None:
        return _pool(static, features, level, grid)
    return _pooled(static, features, level, grid, lax.stop_gradient(known))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(static, features, level, grid):
    return lax.platform_dependent(
        features,
        level,
        grid,
        cpu=_images_together(functools.partial(_forward_loops, static)),
        default=functools.partial(_forward_whole, static),
    )


def _pool_forward(static, features, level, grid):
    return _pool(static, features, level, grid), (level, grid)


def _pool_backward(static, residuals, dy):
    d_features = lax.platform_dependent(
        *residuals,
        dy,
        cpu=_images_together(functools.partial(_backward_loops, static)),
        default=functools.partial(_backward_whole, static),
    )
    return d_features, None, None


_pool.defvjp(_pool_forward, _pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled(static, features, level, grid, known):
    """`_pool`, whose result is known; RoIAlign is linear, so its gradient needs no values."""
    return known


def _pooled_forward(static, features, level, grid, known):
    return known, (level, grid)


def _pooled_backward(static, residuals, dy):
    return *_pool_backward(static, residuals, dy), None


_pooled.defvjp(_pooled_forward, _pooled_backward)


def _forward_whole(static, features, level, grid):
    """[R, Sy, Sx, D]: all RoIs at once, from a flat copy of the pyramid."""
    cells = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    pooled = _average(static, cells, grid, _AT_ONCE)
    return jnp.where(_column(level < len(features)), pooled, 0).astype(static.dtype)


def _backward_whole(static, level, grid, dy):
    """Gradients of the L maps [Hl, Wl, D], adjoint to `_forward_whole`."""
    counts = [height * width for height, width, _ in static.shapes]
    total = jnp.zeros((sum(counts), dy.shape[-1]), static.accumulator)
    dy = jnp.where(_column(level < len(counts)), dy, 0)
    total = _spread(static, total, grid, dy, _AT_ONCE, sequential=False)
    totals = jnp.split(total, [sum(counts[:i]) for i in range(1, len(counts))])
    return tuple(
        t.reshape(s).astype(static.dtype) for t, s in zip(totals, static.shapes, strict=True)
    )


def _forward_loops(static, features, level, grid):
    """[B, R, Sy, Sx, D]: one RoI at a time, in level order, reading each level in place.

    Arguments have an image axis; the maps of a level are read as one map of stacked images.
    """
    order, starts = _by_level(static, level)
    out = jnp.zeros((level.size, *static.output, static.shapes[0][2]), static.dtype)
    for first, last, maps in zip(starts[:-1], starts[1:], features, strict=True):
        cells = maps.reshape(-1, maps.shape[-1])

        def step(i, out, cells=cells):
            pooled = _average(static, cells, _one(grid, order[i], len(cells)), 1)
            return lax.dynamic_update_slice_in_dim(out, pooled.astype(out.dtype), order[i], 0)

        out = lax.fori_loop(first, last, step, out)
    return out.reshape(*level.shape, *out.shape[1:])


def _backward_loops(static, level, grid, dy):
    """Gradients of the L maps [B, Hl, Wl, D], adjoint to `_forward_loops`."""
    order, starts = _by_level(static, level)
    flat = dy.reshape(-1, *dy.shape[2:])

    def step(i, total):
        one = lax.dynamic_slice_in_dim(flat, order[i], 1)
        return _spread(static, total, _one(grid, order[i], len(total)), one, 1, sequential=True)

    gradients = []
    for first, last, (height, width, depth) in zip(
        starts[:-1], starts[1:], static.shapes, strict=True
    ):
        total = jnp.zeros((len(level) * height * width, depth), static.accumulator)
        total = lax.fori_loop(first, last, step, total).astype(static.dtype)
        gradients.append(total.reshape(-1, height, width, depth))
    return tuple(gradients)


def _images_together(function):
    """Calls `function`, which takes an image axis, on one image; under `vmap`, once for the batch.

    A loop over the images would copy their maps; `vmap` of a loop would copy what it updates in
    place.
    """

    @custom_batching.custom_vmap
    def call(*arrays):
        out = function(*jax.tree.map(lambda x: x[None], arrays))
        return jax.tree.map(lambda x: x[0], out)

    @call.def_vmap
    def call_batch(size, batched, *arrays):
        def fill(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        out = function(*jax.tree.map(fill, arrays, tuple(batched)))
        return out, jax.tree.map(lambda _: True, out)

    return call


def _average(static, cells, grid, at_once):
    """Mean [R, Sy, Sx, D] over the samples of each bin, `at_once` of them in a step."""

    def add(k, total):
        return total + sample.gather(cells, _corners(static, grid, k))

    shape = (len(grid.base), *static.output, cells.shape[-1])
    return _over_samples(static, grid, add, jnp.zeros(shape, static.accumulator), at_once)


def _spread(static, total, grid, dy, at_once, sequential):
    """`total` [N, D] plus the adjoint of `_average` for `dy` [R, Sy, Sx, D]."""

    def add(k, total):
        return sample.scatter_add(total, _corners(static, grid, k), dy, sequential)

    return _over_samples(static, grid, add, total, at_once)


def _over_samples(static, grid, add, total, at_once):
    """What `add(k, total)` makes of `total` for every sample k of a bin, `at_once` in a step.

    The number of samples is a constant, or the largest among these RoIs.  Samples beyond those of
    a RoI have no weight.
    """
    if static.ratio:
        steps = -(-(static.ratio**2) // at_once)
        at_once = -(-(static.ratio**2) // steps)
    else:
        steps = (_most(grid.count[:, 0] * grid.count[:, 1]) + at_once - 1) // at_once

    def step(i, total):
        for k in range(at_once):
            total = add(i * at_once + k, total)
        return total

    if static.ratio and steps == 1:
        return step(0, total)
    return lax.fori_loop(0, steps, step, total)


@custom_batching.custom_vmap
def _most(counts):
    return jnp.max(counts)


@_most.def_vmap
def _most_of_batch(axis_size, batched, counts):
    """One loop length for the whole batch: separate lengths would make the loop copy its carry."""
    return _most(counts), False


def _corners(static, grid, k):
    """Sample `k` of every bin: `Corners` [R, Sy, Sx, 4], weights divided by the count."""
    count = jnp.maximum(grid.count, 1)
    number = jnp.stack([k // count[:, 1], k % count[:, 1]], -1)  # [R, 2] along y and x
    inside_bin = (number + 0.5) * grid.bin_size / count

    def positions(axis):
        bins = jnp.arange(static.output[axis], dtype=grid.start.dtype)
        at = grid.start[:, axis, None] + bins * grid.bin_size[:, axis, None]
        at += inside_bin[:, axis, None]  # [R, S]
        size = grid.size[:, axis, None]
        return jnp.clip(at, 0, size - 1), (at >= -1) & (at <= size)

    (y, y_counts), (x, x_counts) = positions(0), positions(1)
    height, width = grid.size[:, 0, None, None], grid.size[:, 1, None, None]
    index, weight = sample.corners(y[:, :, None], x[:, None, :], height, width)
    samples = grid.count[:, 0] * grid.count[:, 1]
    counts = y_counts[:, :, None] & x_counts[:, None, :] & (k < samples)[:, None, None]
    weight = jnp.where(counts[..., None], weight / _column(jnp.maximum(samples, 1)), 0)
    return sample.Corners(index + _column(grid.base), weight.astype(static.accumulator))


def _by_level(static, level):
    """(Flat indices of RoIs sorted by `level` [B, R], start of each level and end of the last)."""
    order = jnp.argsort(level.ravel())
    return order, jnp.searchsorted(level.ravel()[order], jnp.arange(len(static.shapes) + 1))


def _one(grid, number, cells):
    """The grid of RoI `number`, flat in [B, R]; all maps together have `cells` cells."""
    images, rois = grid.base.shape
    row = [
        lax.dynamic_slice_in_dim(values.reshape(-1, *values.shape[2:]), number, 1)
        for values in grid
    ]
    base = number // rois * (cells // images)
    return _Grid(*row)._replace(base=base.astype(jnp.int32)[None])


def _column(values):
    return values[:, None, None, None]

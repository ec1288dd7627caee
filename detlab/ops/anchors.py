"""Anchor boxes and points of a feature pyramid, and the order in which its maps are flattened.

A prior is an anchor or a point.  Level l is a map of `Hl x Wl` cells, `stride` px apart, and each
cell holds the same number of priors.  Every function here flattens in the order levels, rows,
columns, anchors of a cell.

Cell anchors, the anchors of cell (0, 0), are small NumPy arrays.  Grids are computed from iotas
inside the compiled program, because hundreds of thousands of constants would swell the executable.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


def cell_anchors(
    base_size: float, scales, ratios, center_offset: float = 0.0, scale_major: bool = True
):
    """Anchors of one cell from scales and aspect ratios (Faster R-CNN, arXiv:1506.01497, 3.1.1).

    Args:
      base_size: px, usually the stride; multiplied by each scale.
      scales: [S].
      ratios: [R] height / width; the area does not depend on it.
      center_offset: of the centre from the cell's top left corner, in base sizes.
      scale_major: order anchors by ratio, then scale (the reference's name); else by scale, then
        ratio.
    Returns:
      [A, 4] float32 NumPy xyxy, px; A = S * R.
    Example:
      >>> cell_anchors(8, scales=(1,), ratios=(1, 4)).tolist()
      [[-4.0, -4.0, 4.0, 4.0], [-2.0, -8.0, 2.0, 8.0]]
    """
    scales = np.asarray(scales, np.float64)
    root = np.sqrt(np.asarray(ratios, np.float64))
    if scale_major:
        widths, heights = scales / root[:, None], scales * root[:, None]
    else:
        widths, heights = scales[:, None] / root, scales[:, None] * root
    sizes = base_size * np.stack([widths.ravel(), heights.ravel()], axis=-1)
    return _centered(sizes, center_offset * base_size)


def octave_scales(octave_base_scale: float, scales_per_octave: int):
    """Scales that divide an octave evenly (RetinaNet, arXiv:1708.02002, section 4).

    Returns:
      [scales_per_octave] float64 NumPy.
    Example:
      >>> octave_scales(4, 3).round(3).tolist()
      [4.0, 5.04, 6.35]
    """
    return octave_base_scale * 2.0 ** (np.arange(scales_per_octave) / scales_per_octave)


def ssd_sizes(min_size: float, max_size: float, ratios: Sequence[float]):
    """Widths and heights of SSD's boxes (arXiv:1512.02325, section 2.2), in the reference's order.

    Args:
      min_size: px, s_k of the level.
      max_size: px, s_k+1; the second square has the side sqrt(min_size * max_size).
      ratios: such as (2, 3); each gives a wide and a tall box.
    Returns:
      [2 + 2 * number of ratios, 2] float32 NumPy width, height, px.
    Example:
      >>> ssd_sizes(4, 9, ratios=(4,)).tolist()
      [[4.0, 4.0], [6.0, 6.0], [8.0, 2.0], [2.0, 8.0]]
    """
    between = np.sqrt(min_size * max_size)
    sizes = [(min_size, min_size), (between, between)]
    for ratio in ratios:
        long, short = min_size * np.sqrt(ratio), min_size / np.sqrt(ratio)
        sizes += [(long, short), (short, long)]
    return np.asarray(sizes, np.float32)


def sized_anchors(sizes, stride):
    """Anchors of given sizes, centred in a cell (SSD, YOLO).

    Args:
      sizes: [A, 2] width, height, px.
      stride: [] or [2] x, y px.
    Returns:
      [A, 4] float32 NumPy xyxy, px.
    Example:
      >>> sized_anchors([(4, 2)], stride=8).tolist()
      [[2.0, 3.0, 6.0, 5.0]]
    """
    return _centered(np.asarray(sizes, np.float64), np.asarray(stride) / 2)


def _centered(sizes, center):
    return np.concatenate([center - sizes / 2, center + sizes / 2], axis=-1).astype(np.float32)


def grid_points(stride, shape: tuple[int, int], offset: float = 0.0):
    """One point per cell.

    Args:
      stride: [] or [2] x, y, px between cells.
      shape: (Hl, Wl), static.
      offset: of the point from the cell's top left corner, in strides.
    Returns:
      [Hl * Wl, 2] float32 x, y px, row by row.
    Example:
      >>> grid_points(8, (2, 2), offset=0.5).tolist()
      [[4.0, 4.0], [12.0, 4.0], [4.0, 12.0], [12.0, 12.0]]
    """
    stride_x, stride_y = np.broadcast_to(stride, 2)
    y = (jnp.arange(shape[0], dtype=jnp.float32) + offset) * stride_y
    x = (jnp.arange(shape[1], dtype=jnp.float32) + offset) * stride_x
    x, y = jnp.meshgrid(x, y)  # [Hl, Wl] each
    return jnp.stack([x.ravel(), y.ravel()], axis=-1)


def grid_anchors(cell, stride, shape: tuple[int, int]):
    """Repeats the anchors of one cell in each cell of a level.

    Args:
      cell: [A, 4] anchors of the cell (0, 0), px.
      stride: [] or [2] x, y, px between cells.
      shape: (Hl, Wl), static.
    Returns:
      [Hl * Wl * A, 4] float32 xyxy, px, in the order rows, columns, anchors.
    Example:
      >>> grid_anchors([[-4, -4, 4, 4]], 8, (1, 2)).tolist()
      [[-4.0, -4.0, 4.0, 4.0], [4.0, -4.0, 12.0, 4.0]]
    """
    corners = grid_points(stride, shape)  # [Hl * Wl, 2]
    shifts = jnp.concatenate([corners, corners], axis=-1)
    return (shifts[:, None, :] + jnp.asarray(cell, jnp.float32)).reshape(-1, 4)


class Grid(NamedTuple):
    """The cells of a canvas on each pyramid level and the N priors in them; `grid` makes one."""

    strides: tuple  # px between cells; a level may have a pair x, y, then there is no `stride()`
    shapes: tuple  # (Hl, Wl) cells, static
    per_cell: tuple  # priors in a cell: the number of anchors, or 1 for points

    def slices(self) -> list[slice]:
        """The slice of each level among the N priors."""
        ends = np.cumsum([0, *self._counts()])
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def level(self):
        """The level [N] int32 of each prior, counted from the finest."""
        parts = [jnp.full(count, level, jnp.int32) for level, count in enumerate(self._counts())]
        return jnp.concatenate(parts)

    def stride(self):
        """The stride [N] float32 px of each prior's level."""
        return jnp.array(self.strides, jnp.float32)[self.level()]

    def anchors(self, cells):
        """The anchors of all levels, [N, 4] float32 xyxy px.

        Args:
          cells: for each level, [A, 4] anchors of the cell (0, 0), px.
        Raises:
          ValueError: `cells` and the grid have different numbers of levels.
        """
        if len(cells) != len(self.strides):
            raise ValueError(
                f"cells must have one entry for each of the grid's {len(self.strides)} levels, "
                f"not {len(cells)}"
            )
        levels = zip(cells, self.strides, self.shapes, strict=True)
        return jnp.concatenate([grid_anchors(*level) for level in levels])

    def octave_anchors(
        self, octave_base_scale: float, scales_per_octave: int, ratios: Sequence[float]
    ):
        """Anchors of `octave_scales` and `ratios` in all cells, [cells * A, 4] float32 xyxy px."""
        scales = octave_scales(octave_base_scale, scales_per_octave)
        return self.anchors([cell_anchors(stride, scales, ratios) for stride in self.strides])

    def squares(self, scale: float):
        """A square around the corner of each cell, `scale` strides wide, [cells, 4] xyxy px."""
        return self.anchors([cell_anchors(stride, (scale,), (1.0,)) for stride in self.strides])

    def points(self, offset: float = 0.0):
        """The points of all levels, [N, 2] float32 x, y px; `offset` as in `grid_points`."""
        levels = zip(self.strides, self.shapes, strict=True)
        return jnp.concatenate([grid_points(*level, offset) for level in levels])

    def inside(self, image_size):
        """Marks the priors in cells that hold part of the image, not only padding.

        The loss ignores all other priors, and prediction masks them.

        Args:
          image_size: [2] int32 height, width px of one image's content.
        Returns:
          [N] bool: row < ceil(height / stride) and column < ceil(width / stride).
        """
        height, width = image_size[0], image_size[1]
        levels = []
        for (rows, columns), stride, count in zip(
            self.shapes, self.strides, self.per_cell, strict=True
        ):
            stride_x, stride_y = np.broadcast_to(stride, 2)
            # row < ceil(height / stride), in integers where strides are integers
            in_rows = jnp.arange(rows) * stride_y < height
            in_columns = jnp.arange(columns) * stride_x < width
            cells = in_rows[:, None] & in_columns  # [Hl, Wl]
            levels.append(jnp.repeat(cells.ravel(), count))
        return jnp.concatenate(levels)

    def _counts(self):
        return [
            rows * columns * count
            for (rows, columns), count in zip(self.shapes, self.per_cell, strict=True)
        ]


def grid(
    canvas: tuple[int, int], strides: Sequence[int], per_cell: int | tuple[int, ...] = 1
) -> Grid:
    """Makes the `Grid` of a canvas; sizes / strides round up, as in padded convolutions.

    Args:
      canvas: (height, width) px, static.
      strides: px, one for each level.
      per_cell: priors in a cell, one number or one for each level.
    Example:
      >>> pyramid = grid((8, 16), strides=(8, 16))
      >>> pyramid.shapes
      ((1, 2), (1, 1))
      >>> pyramid.points(offset=0.5).tolist()
      [[4.0, 4.0], [12.0, 4.0], [8.0, 8.0]]
    """
    shapes = tuple((-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in strides)
    counts = per_cell if isinstance(per_cell, tuple) else (per_cell,) * len(strides)
    return Grid(tuple(strides), shapes, counts)


def flatten_levels(maps, channels: int):
    """Flattens raw maps to one row for each anchor, in the order of the anchors.

    Args:
      maps: for each level, [B, Hl, Wl, A * channels], the output of a convolution.
      channels: of one anchor.
    Returns:
      [B, N, channels].
    Example:
      >>> fine, coarse = jnp.array([[[[0, 1], [2, 3]]]]), jnp.array([[[[4, 5]]]])
      >>> flatten_levels([fine, coarse], channels=2).tolist()
      [[[0, 1], [2, 3], [4, 5]]]
    """
    return jnp.concatenate([level.reshape(level.shape[0], -1, channels) for level in maps], axis=1)

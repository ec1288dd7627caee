"""Heat maps from feature maps: reductions of the channels, class activation maps, and figures.

Letters: H, W cells of a map, D channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PERCENTILES = (1, 99)  # the ends of a colour scale


def reduce(values: Any, method: str) -> np.ndarray:
    """One number a cell: `mean` of the absolute values, `norm` (L2), or `max` of all channels.

    Args:
      values: [H, W, D].
      method: see above.
    Returns:
      [H, W] float32.
    """
    values = np.asarray(values, np.float32)
    if method == "norm":
        return np.sqrt(np.square(values).sum(-1))
    return np.abs(values).mean(-1) if method == "mean" else values.max(-1)


def largest(values: Any, count: int) -> np.ndarray:
    """The channels of the largest mean absolute value, largest first: [count] int.

    Args:
      values: [H, W, D].
      count: at most D.
    """
    sizes = np.abs(np.asarray(values, np.float32)).mean((0, 1))
    return np.argsort(-sizes, kind="stable")[:count]


def principal(values: Any, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of the cells.

    Args:
      values: [H, W, D].
      count: of components; those that the map lacks are zero.
    Returns:
      ([H, W, count] coordinates, [count] their shares of the variance).  The largest weight of a
      component is positive, so that signs do not depend on the library.
    """
    values = np.asarray(values, np.float64)
    cells = values.reshape(-1, values.shape[-1])
    cells = cells - cells.mean(0)
    # The smaller of both products has the same eigenvalues.
    _, sizes, axes = np.linalg.svd(cells, full_matrices=False)
    axes, sizes = axes[:count], sizes[: len(axes)]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1))
    found = np.zeros((len(cells), count))
    found[:, : len(axes)] = cells @ (axes * np.where(signs == 0, 1, signs)).T
    total = np.square(cells).sum()
    shares = np.zeros(count)
    shares[: len(axes)] = np.square(sizes[: len(axes)]) / (total if total > 0 else 1)
    return found.reshape(*values.shape[:2], count), shares


def cam(values: Any, gradients: Any, method: str) -> np.ndarray:
    """A class activation map [H, W] of a score: what speaks for it.

    Args:
      values: [H, W, D].
      gradients: [H, W, D], of the score.
      method: `gradcam` (arXiv:1610.02391, eq. 1, 2): each channel counts as its mean gradient;
        `layercam` (Jiang et al. 2021, eq. 4, 5): each cell as its own gradient where that is
        positive.
    """
    values, gradients = (np.asarray(x, np.float32) for x in (values, gradients))
    weights = gradients.mean((0, 1)) if method == "gradcam" else np.maximum(gradients, 0)
    return np.maximum((weights * values).sum(-1), 0)


def over_levels(maps: Sequence[np.ndarray], canvas: tuple[int, int]) -> np.ndarray:
    """The sum of maps [Hl, Wl] on the canvas, each cell spread evenly over its pixels: [h, w].

    So a cell counts the same on every level.
    """
    total = np.zeros(canvas, np.float32)
    for heat in maps:
        rows, columns = (
            np.arange(side) * cells // side for side, cells in zip(canvas, heat.shape, strict=True)
        )
        total += heat[rows][:, columns] * (heat.size / np.prod(canvas))
    return total


def share_inside(heat: np.ndarray, box: Any, canvas: tuple[int, int], size: Any) -> float | None:
    """The share of the heat in the image that lies in a box; None if there is no heat.

    A cell counts by the part of it that lies in the box.  If some values are negative, all are
    counted from the least.

    Args:
      heat: [H, W].
      box: xyxy px.
      canvas: (height, width) px that the map spans.
      size: height, width px of the image on the canvas.
    """
    heat = heat - min(float(heat.min()), 0.0)
    image = (0, 0, size[1], size[0])
    box = np.clip(np.asarray(box, float), 0, (size[1], size[0], size[1], size[0]))
    total = (heat * _cover(heat.shape, image, canvas)).sum()
    return float((heat * _cover(heat.shape, box, canvas)).sum() / total) if total > 0 else None


def _cover(shape, box, canvas):
    """The part of each cell that a box covers: [H, W]."""
    parts = []
    for cells, side, low, high in zip(shape, canvas, box[1::-1], box[:1:-1], strict=True):
        edges = np.arange(cells + 1) * (side / cells)
        part = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        parts.append(np.clip(part, 0, None) * cells / side)
    return parts[0][:, None] * parts[1]


def figures(heat: np.ndarray, canvas: tuple[int, int], size: Any, box: Any = None) -> dict:
    """The numbers of a heat map [H, W], as the JSON has them; arguments as for `share_inside`."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    cell = [side / n for side, n in zip(canvas, heat.shape, strict=True)]  # height, width px
    middle = {"x": (column + 0.5) * cell[1], "y": (row + 0.5) * cell[0]}
    inside = None if box is None else share_inside(heat, box, canvas, size)
    return {
        "cells": list(heat.shape),
        "stride_px": [round(side, 2) for side in cell],
        "min": float(heat.min()),
        "max": float(heat.max()),
        "constant": is_constant(heat),
        "peak_px": {axis: round(float(px), 1) for axis, px in middle.items()},
        "share_in_box": None if inside is None else round(inside, 4),
    }


def is_constant(heat: np.ndarray) -> bool:
    """Whether all values are equal but for rounding."""
    return bool(np.ptp(heat) <= 1e-6 * np.abs(heat).max())


def scale(heat: np.ndarray) -> tuple[float, float]:
    """The ends of the colour scale of a map that is not constant: percentiles, if they differ."""
    low, high = (float(x) for x in np.percentile(heat, PERCENTILES))
    return (low, high) if low < high else (float(heat.min()), float(heat.max()))


def own_candidate(detection: Mapping[str, Any], candidates: Mapping[str, Any]) -> int:
    """The candidate that became a detection.

    Suppression may lower a score (soft suppression) or move a box (voting): of the candidates of
    the class, those of the same score come first if there are any, then the one of the largest IoU.

    Args:
      detection: `box` [4], `score`, `label`.
      candidates: `boxes` [K, 4], `scores`, `labels` and `valid` [K], of one image.
    """
    boxes, box = np.asarray(candidates["boxes"], float), np.asarray(detection["box"], float)
    same = np.asarray(candidates["valid"]) & (candidates["labels"] == detection["label"])
    equal = same & (np.abs(candidates["scores"] - detection["score"]) < 1e-6)
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common
    overlap = common / np.where(union > 0, union, 1)
    return int(np.where(equal if equal.any() else same, overlap, -1).argmax())

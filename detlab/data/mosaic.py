"""Images made from several records: mosaics of four and of nine, and mixup, as in YOLOv5.

These functions take records that are already small enough; `detlab.data.augment` chooses the
records and the random generator.  `four` and `nine` place the tiles of a mosaic on a plane of twice
the canvas, `paste` draws the plane, and `affine.warp` shows a part of it.  Reference:
`load_mosaic`, `load_mosaic9` and `mixup` of ultralytics' YOLOv5.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detlab.data import records as records_lib
from detlab.data import transforms


def four(
    tiles: Sequence[dict[str, Any]], canvas: tuple[int, int], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Places four tiles that meet at a random point in the middle half of the plane.

    Args:
      tiles: four records, top left, top right, bottom left and bottom right, each at most as large
        as the canvas.
      canvas: (height, width) px; the plane has twice its sides.
      rng: draws the point.
    Returns:
      (x, y) px of each tile's top left corner on the plane; parts of a tile may lie beyond it.
    """
    height, width = canvas
    x = int(rng.integers(width // 2, width + width // 2))
    y = int(rng.integers(height // 2, height + height // 2))
    corners = []
    for number, tile in enumerate(tiles):
        h, w = tile["image"].shape[:2]
        corners.append((x if number % 2 else x - w, y if number >= 2 else y - h))
    return corners


def nine(
    tiles: Sequence[dict[str, Any]], canvas: tuple[int, int], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Places eight tiles around a first; the plane shows a random part of them.

    Args:
      tiles: nine records: the middle one, then clockwise from the one above it.
      canvas, rng: see `four`.
    Returns:
      Corners as from `four`.
    """
    height, width = canvas
    x, y = width - int(rng.integers(width)), height - int(rng.integers(height))
    w, h = zip(*(tile["image"].shape[1::-1] for tile in tiles), strict=True)
    # Two tiles along each side of the first, one of them at a corner.
    around = [
        (0, 0),
        (0, -h[1]),
        (w[1], -h[2]),
        (w[0], 0),
        (w[0], h[3]),
        (w[0] - w[5], h[0]),
        (w[0] - w[5] - w[6], h[0]),
        (-w[7], h[0] - h[7]),
        (-w[8], h[0] - h[7] - h[8]),
    ]
    return [(x + right, y + down) for right, down in around]


def paste(
    tiles: Sequence[dict[str, Any]],
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int],
    pad_value: int | tuple[int, int, int],
    seen: tuple[slice, slice] | None = None,
    channels: int = 3,
) -> dict[str, Any]:
    """An image of `size` (height, width) px with tiles at the given corners and all their objects.

    Boxes are clipped to the image, and `area` shrinks in proportion; objects with nothing left are
    dropped.  `placement` is reset to the identity.

    Args:
      tiles: records; no two tiles overlap.
      corners: (x, y) whole px of each tile's top left corner, anywhere.
      pad_value: 0..255 between the tiles, one number or one for each of R, G, B.
      seen: rows and columns of the image that will be read, see `affine.window`; the others stay
        undefined.  None: all.
      channels: 3 or 4 of the image; the fourth has no meaning, see `affine.CHANNELS`.
    """
    height, width = size
    rows, columns = seen or (slice(0, height), slice(0, width))
    image = np.empty((height, width, channels), np.uint8)
    colour = np.broadcast_to(pad_value, 3).tolist() + [0]
    transforms.fill(image[rows, columns], tuple(colour[:channels]))
    moved = []
    for tile, (x, y) in zip(tiles, corners, strict=True):
        h, w = tile["image"].shape[:2]
        left, right = max(x, columns.start), min(x + w, columns.stop)
        top, bottom = max(y, rows.start), min(y + h, rows.stop)
        if left < right and top < bottom:
            part = tile["image"][top - y : bottom - y, left - x : right - x]
            if channels == 4:
                cv2.cvtColor(part, cv2.COLOR_RGB2RGBA, dst=image[top:bottom, left:right])
            else:
                image[top:bottom, left:right] = part
        boxes = tile["boxes"] + np.array([x, y, x, y], np.float32)
        clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        before, after = records_lib.box_areas(boxes), records_lib.box_areas(clipped)
        area = tile["area"] * (after / np.where(before > 0, before, 1))
        tile = {**tile, "boxes": clipped, "area": area.astype(np.float32)}
        moved.append(records_lib.select_objects(tile, after > 0))
    return {
        **records_lib.join_objects(moved),
        "image": image,
        "image_size": (height, width),
        "placement": np.array([1, 1, 0, 0], np.float32),
    }


def mix(
    record: dict[str, Any],
    other: dict[str, Any],
    part: float,
    pad_value: int | tuple[int, int, int],
) -> dict[str, Any]:
    """Mixup (arXiv:1710.09412): blends two images and keeps the objects of both.

    Args:
      part: 0..1, weight of the first image.
      pad_value: fills the area beyond the smaller image; the top left corners are aligned.
    """
    size = tuple(np.maximum(record["image"].shape[:2], other["image"].shape[:2]).tolist())
    first, second = (transforms.pad(r, size, pad_value)["image"] for r in (record, other))
    return {
        **records_lib.join_objects([record, other]),
        "image": cv2.addWeighted(first, part, second, 1 - part, 0),
        "image_size": size,
    }

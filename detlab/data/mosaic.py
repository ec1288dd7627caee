"""Pictures made of several records: mosaics of four and of nine, and mixup, as in YOLOv5.

Plain functions of records that were made small enough before; which records, and with which random
numbers, is the loader's part.  Reference: `load_mosaic`, `load_mosaic9` and `mixup` of ultralytics'
YOLOv5.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detlab.data import records as records_lib
from detlab.data import transforms


def four(
    tiles: Sequence[dict[str, Any]],
    canvas: tuple[int, int],
    rng: np.random.Generator,
    pad_value: int | tuple[int, int, int],
) -> dict[str, Any]:
    """Four pictures with a corner each on one point, which lies in the middle half of the plane.

    Args:
      tiles: four records, top left, top right, bottom left and bottom right; each at most as large
        as the canvas, so that what reaches beyond the plane is cut off.
      canvas: (height, width) px.
      rng: generator, of which the point is drawn.
    Returns:
      A record of twice the canvas: a plane of which `affine.warp` shows a part.
    """
    height, width = canvas
    x = int(rng.integers(width // 2, width + width // 2))
    y = int(rng.integers(height // 2, height + height // 2))
    corners = []
    for number, tile in enumerate(tiles):
        h, w = tile["image"].shape[:2]
        corners.append((x if number % 2 else x - w, y if number >= 2 else y - h))
    return paste(tiles, corners, (2 * height, 2 * width), pad_value)


def nine(
    tiles: Sequence[dict[str, Any]],
    canvas: tuple[int, int],
    rng: np.random.Generator,
    pad_value: int | tuple[int, int, int],
) -> dict[str, Any]:
    """Eight pictures around a first, of a plane that shows any part of twice the canvas of them.

    Args:
      tiles: nine records: the middle one, then clockwise from the one above it.
    The rest is that of `four`.
    """
    height, width = canvas
    x, y = width - int(rng.integers(width)), height - int(rng.integers(height))
    w, h = zip(*(tile["image"].shape[1::-1] for tile in tiles), strict=True)
    # Two pictures along each side of the first, one of them at its corner.
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
    corners = [(x + right, y + down) for right, down in around]
    return paste(tiles, corners, (2 * height, 2 * width), pad_value)


def paste(
    tiles: Sequence[dict[str, Any]],
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int],
    pad_value: int | tuple[int, int, int],
) -> dict[str, Any]:
    """A picture of `size` (height, width) px with tiles at their corners, and all their objects.

    Boxes are clipped to the picture, and `area` goes by the part that is left; objects of which
    nothing is left go.  `placement` starts anew, at this picture.

    Args:
      tiles: records of which no two lie on each other.
      corners: (x, y) whole px of the top left corner of each, anywhere.
      pad_value: 0..255 between them, one number or one for each of R, G, B.
    """
    height, width = size
    image = np.empty((height, width, 3), np.uint8)
    image[:] = pad_value
    moved = []
    for tile, (x, y) in zip(tiles, corners, strict=True):
        h, w = tile["image"].shape[:2]
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if left < right and top < bottom:
            part = tile["image"][top - y : bottom - y, left - x : right - x]
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
    """Mixup (arXiv:1710.09412): one picture shines through another, and all objects of both count.

    Args:
      part: 0..1, of the first in each pixel.
      pad_value: beyond the smaller of the two, which lie with their top left corners together.
    """
    size = tuple(np.maximum(record["image"].shape[:2], other["image"].shape[:2]).tolist())
    first, second = (transforms.pad(r, size, pad_value)["image"] for r in (record, other))
    return {
        **records_lib.join_objects([record, other]),
        "image": cv2.addWeighted(first, part, second, 1 - part, 0),
        "image_size": size,
    }

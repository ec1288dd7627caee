"""Transforms: record in, new record out; boxes and `placement` move exactly with the pixels.

Plain functions do one thing to a record; `flip_horizontal` and `flip_vertical` make functions
(record, generator) -> record that act at random.  No transform changes the record it is given.
Pad last: the others move the whole picture, padding included.
"""

import cv2
import numpy as np


def resize_keep_ratio(record, height, width, limits=None):
    """The largest picture of the same ratio that fits into height x width px.

    Sides are rounded as in mmcv's `imrescale`, int(side * scale + 0.5), and boxes follow the ratio
    of the rounded sides, axis by axis.

    Args:
      limits: (long, short) px that the longer and the shorter side may not exceed either, as
        (1333, 800) of the usual COCO setting; None for no such limit.
    """
    h, w = record["image"].shape[:2]
    scale = min(height / h, width / w)
    if limits is not None:
        long, short = limits
        scale = min(scale, long / max(h, w), short / min(h, w))
    return resize_fixed(record, max(1, int(h * scale + 0.5)), max(1, int(w * scale + 0.5)))


def resize_fixed(record, height, width):
    """The picture stretched to exactly height x width px (bilinear)."""
    image = record["image"]
    h, w = image.shape[:2]
    if (h, w) != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    moved = _move(record, image, scale=(width / w, height / h), shift=(0, 0))
    # A side that ends at the border may be rounded beyond it.
    moved["boxes"] = np.clip(moved["boxes"], 0, np.array([width, height] * 2, np.float32))
    return moved


def mirror_horizontal(record):
    """Left and right exchanged: x becomes width - x."""
    image = np.ascontiguousarray(record["image"][:, ::-1])
    return _move(record, image, scale=(-1, 1), shift=(image.shape[1], 0))


def mirror_vertical(record):
    """Top and bottom exchanged: y becomes height - y."""
    image = np.ascontiguousarray(record["image"][::-1])
    return _move(record, image, scale=(1, -1), shift=(0, image.shape[0]))


def flip_horizontal(probability):
    """(record, rng) -> record, mirrored left to right with this probability."""
    return lambda record, rng: mirror_horizontal(record) if rng.random() < probability else record


def flip_vertical(probability):
    """(record, rng) -> record, mirrored top to bottom with this probability."""
    return lambda record, rng: mirror_vertical(record) if rng.random() < probability else record


def pad(record, canvas, pad_value):
    """The picture in the top left corner of a canvas.

    Args:
      canvas: (height, width) px.
      pad_value: 0..255, one number or one for each of R, G, B.
    Raises:
      ValueError: the picture is larger than the canvas.
    """
    h, w = record["image"].shape[:2]
    if h > canvas[0] or w > canvas[1]:
        raise ValueError(f"a picture of {h}x{w} px does not fit on a canvas of {canvas} px")
    moved = _move(record, record["image"], scale=(1, 1), shift=(0, 0))
    moved["image"] = np.empty((*canvas, 3), np.uint8)
    moved["image"][:] = pad_value
    moved["image"][:h, :w] = record["image"]
    return moved


def _move(record, image, scale, shift):
    """The record with another picture, its boxes and placement moved by xy * scale + shift."""
    scale, shift = np.array(scale, np.float64), np.array(shift, np.float64)
    corners = record["boxes"].reshape(-1, 2, 2) * scale + shift
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    placement = record.get("placement", np.array([1, 1, 0, 0], np.float32))
    placement = np.concatenate([placement[:2] * scale, placement[2:] * scale + shift])
    return {
        **record,
        "image": image,
        "boxes": boxes.astype(np.float32),
        "area": (record["area"] * abs(scale[0] * scale[1])).astype(np.float32),
        "placement": placement.astype(np.float32),
        "image_size": image.shape[:2],
    }

"""Draws outlines and keypoints of objects on images, without a window."""

from collections.abc import Sequence

import cv2
import numpy as np

ALPHA = 0.4  # of the colour inside an outline


def draw_masks(image, masks: Sequence[np.ndarray], shades: Sequence[tuple[int, int, int]]):
    """Tints objects and draws their outlines on a copy of the image; later ones are on top.

    Args:
      image: [H, W, 3] uint8 RGB; not changed.
      masks: n of [H, W] bool.
      shades: n RGB colours, 0..255.
    Returns:
      [H, W, 3] uint8 RGB.
    """
    canvas = np.array(image)
    for mask, shade in zip(masks, shades, strict=True):
        inside = np.asarray(mask, bool)
        mixed = (1 - ALPHA) * canvas[inside] + ALPHA * np.array(shade)
        canvas[inside] = np.rint(mixed).astype(np.uint8)
        outlines, _ = cv2.findContours(
            inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(canvas, outlines, -1, shade, _thickness(canvas))
    return canvas


def draw_keypoints(
    image, keypoints, skeleton: Sequence[tuple[int, int]], shade: tuple[int, int, int]
):
    """Draws the points of an object, and lines between those that belong together, on a copy.

    Args:
      image: [H, W, 3] uint8 RGB; not changed.
      keypoints: [K, 3] x, y px and whether the point is marked (0: not, 1: hidden, 2: visible).
      skeleton: pairs of points, from 0.
      shade: RGB, 0..255.
    Returns:
      [H, W, 3] uint8 RGB.
    """
    canvas = np.array(image)
    thickness = _thickness(canvas)
    places = [(round(float(x)), round(float(y))) for x, y, _ in keypoints]
    marked = [v > 0 for _, _, v in keypoints]
    for a, b in skeleton:
        if max(a, b) < len(places) and marked[a] and marked[b]:
            cv2.line(canvas, places[a], places[b], shade, thickness)
    for place, is_marked in zip(places, marked, strict=True):
        if is_marked:
            cv2.circle(canvas, place, 2 * thickness, shade, -1, cv2.LINE_AA)
            cv2.circle(canvas, place, 2 * thickness, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def _thickness(canvas):
    return max(1, round(min(canvas.shape[:2]) / 300))

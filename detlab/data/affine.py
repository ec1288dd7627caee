"""Random affine and perspective maps of an image with its objects, as in YOLOv5.

Reference: `random_perspective` and `box_candidates` of ultralytics' YOLOv5.  Unlike the reference,
the map is exact to the pixel: images and boxes move in the same coordinates, in which pixel 0
spans 0 to 1.  In YOLOv5, an image scaled by s lies (1 - s) / 2 px beside its boxes.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from detlab.data import records as records_lib

# OpenCV 5 draws four channels in a third of the time of three, with the same values.
CHANNELS = 4 if int(cv2.__version__.partition(".")[0]) >= 5 else 3

_NEAREST = 0.5  # least distance from the viewer; the image's centre is at distance 1


class Ranges(NamedTuple):
    """Largest changes in either direction; each change is drawn uniformly and independently."""

    degrees: float = 0.0  # of rotation
    translate: float = 0.0  # fraction of the result's sides
    scale: float = 0.0  # the factor is 1 - scale .. 1 + scale
    shear: float = 0.0  # degrees, for each axis
    perspective: float = 0.0  # growth of the distance from the viewer, per px, along each axis


class Rule(NamedTuple):
    """Limits that an object must meet after the map to be kept; all three are exclusive."""

    min_side: float = 2.0  # px
    min_part: float = 0.1  # fraction of the area that is left
    max_ratio: float = 100.0  # longer side / shorter side


class Map(NamedTuple):
    """A map from the coordinates of one image to those of another."""

    matrix: np.ndarray  # [3, 3] float64: homogeneous x, y, px from the top left corner
    scale: float = 1.0  # factor of lengths, without shear and perspective


def draw(
    ranges: Ranges, size: tuple[int, int], target: tuple[int, int], rng: np.random.Generator
) -> Map:
    """Draws a `Map`: perspective and rotation about the centre, scale, shear, then translation.

    Args:
      ranges: largest changes.
      size: (height, width) px of the image.
      target: (height, width) px of the result; without translation, the image's centre maps to the
        result's centre.
      rng: always draws eight numbers, whatever the ranges.
    """
    turn, grow, across, down, right, below, tilt_x, tilt_y = rng.uniform(-1, 1, 8)
    scale = 1 + grow * ranges.scale
    angle = np.radians(turn * ranges.degrees)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    tan_x, tan_y = np.tan(np.radians(np.array([across, down]) * ranges.shear))
    shear = np.array([[1, tan_x, 0], [tan_y, 1, 0], [0, 0, 1]])
    tilt = np.array([tilt_x, tilt_y]) * ranges.perspective
    # No part of the image may come too close to the viewer or behind it.  YOLOv5 does not check
    # this.
    nearest = (abs(tilt) * size[::-1]).sum() / 2
    tilt *= min(1, _NEAREST / nearest) if nearest else 1
    perspective = np.array([[1, 0, 0], [0, 1, 0], [*tilt, 1]])
    from_centre = _shift(-size[1] / 2, -size[0] / 2)
    middle = np.array([0.5, 0.5]) + np.array([right, below]) * ranges.translate
    to_place = _shift(middle[0] * target[1], middle[1] * target[0])
    return Map(to_place @ shear @ rotation @ perspective @ from_centre, scale)


def centred(size: tuple[int, int], target: tuple[int, int]) -> Map:
    """The `Map` that aligns both centres with a shift by whole px."""
    return Map(_shift((target[1] - size[1]) // 2, (target[0] - size[0]) // 2))


def warp(
    record: dict[str, Any],
    moved_by: Map,
    target: tuple[int, int],
    rule: Rule,
    pad_value: int | tuple[int, int, int],
) -> dict[str, Any]:
    """Maps a record into an image of `target` (height, width) px.

    The record's image may have a fourth channel, which is dropped; `CHANNELS` are drawn fastest.
    Each box becomes the smallest box around its four mapped corners, clipped to the image.  `rule`
    decides which objects are kept, ignored ones included.  As in YOLOv5, the fraction that is left
    of an object is its new area / (its old area * the square of the map's scale).

    `placement` is reset to the identity: the map is not a scale and shift of the original.
    """
    matrix = moved_by.matrix
    image = _draw(record["image"], moved_by, target, np.broadcast_to(pad_value, 3).tolist())

    before = record["boxes"].astype(np.float64)
    corners = before[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    corners = corners @ matrix[:, :2].T + matrix[:, 2]  # [n, 4, 3]
    corners = corners[..., :2] / corners[..., 2:]
    around = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    boxes = np.clip(around, 0, np.tile(target[::-1], 2))
    # An object fills the same fraction of its mapped quadrilateral as of its old box; of that, the
    # part inside the image is left.
    growth = _ratio(_inside(corners), records_lib.box_areas(before)) * _ratio(
        records_lib.box_areas(boxes), records_lib.box_areas(around)
    )
    moved = {
        **record,
        "image": image,
        "boxes": boxes.astype(np.float32),
        "area": (record["area"] * growth).astype(np.float32),
        "placement": np.array([1, 1, 0, 0], np.float32),
        "image_size": tuple(target),
    }
    return records_lib.select_objects(moved, stays(rule, before, boxes, moved_by.scale))


def stays(rule: Rule, before, after, scale: float = 1.0):
    """Which objects are kept, bool [n], given their boxes before [n, 4] and after [n, 4] a map.

    `scale` is the factor by which lengths grew.  It distinguishes objects that were cut off from
    objects that shrank.
    """
    sides = after[:, 2:] - after[:, :2]
    part = _ratio(records_lib.box_areas(after), records_lib.box_areas(before) * scale**2)
    ratio = _ratio(sides.max(axis=1), sides.min(axis=1))
    return (sides > rule.min_side).all(axis=1) & (part > rule.min_part) & (ratio < rule.max_ratio)


def window(moved_by: Map, target: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of an image of `size` (height, width) px that `warp` reads."""
    matrix = _of_centres(moved_by.matrix)
    if not _is_flat(matrix):
        return slice(0, size[0]), slice(0, size[1])
    height, width = target
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], float)
    corners = (corners @ np.linalg.inv(matrix).T)[:, :2]
    low, high = corners.min(axis=0) - 2, corners.max(axis=0) + 3  # neighbours, and rounding
    (left, top), (right, bottom) = (np.clip(x, 0, size[::-1]).astype(int) for x in (low, high))
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def _draw(image, moved_by, target, border):
    """The image [h, w, 3 or 4] drawn by a map on `target` px, [*target, 3]."""
    matrix = _of_centres(moved_by.matrix)
    if image.shape[2] < CHANNELS:
        seen = window(moved_by, target, image.shape[:2])
        picture = np.empty((*image.shape[:2], 4), np.uint8)  # what is not read stays undefined
        if image[seen].size:
            cv2.cvtColor(image[seen], cv2.COLOR_RGB2RGBA, dst=picture[seen])
        image = picture
    options = dict(flags=cv2.INTER_LINEAR, borderValue=(*border, 0))
    if _is_flat(matrix):
        drawn = cv2.warpAffine(image, matrix[:2], target[::-1], **options)
    else:
        drawn = cv2.warpPerspective(image, matrix, target[::-1], **options)
    return cv2.cvtColor(drawn, cv2.COLOR_RGBA2RGB) if drawn.shape[2] == 4 else drawn


def _of_centres(matrix):
    """The map in OpenCV's coordinates, which start at the centre of pixel 0."""
    return _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)


def _is_flat(matrix):
    return (matrix[2] == [0, 0, 1]).all()


def _shift(x, y):
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def _inside(corners):
    """Areas [n] of quadrilaterals with corners [n, 4, 2] in order (shoelace formula)."""
    following = np.roll(corners, -1, axis=1)
    cross = corners[..., 0] * following[..., 1] - corners[..., 1] * following[..., 0]
    return abs(cross.sum(axis=1)) / 2


def _ratio(upper, lower):
    """Upper / lower, and 0 where lower is not positive."""
    return np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0)

"""Transforms: record in, new record out; boxes and `placement` move exactly with the pixels.

Plain functions do one thing to a record; functions named after a probability or a range make
functions (record, generator) -> record that act at random, by the generator alone.  No transform
changes the record it is given.  The order of use is photometric, expand, crop, resize, flips, hsv,
cut_out, pad; `detlab.data.mosaic` and `affine` come after the resize.

**Expand and the crops move no pixels.**  They set the record's `window`, whole px (x1, y1, x2, y2)
of its image that may reach beyond it: what is to be seen of the plane in which the image lies.
The resize that follows draws the window, so that pixels are interpolated once, and a photograph
with four times its sides around it never is in memory.  `draw_window` draws it at its own size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from detlab.data import records as records_lib

TRIES = 50  # windows drawn before a crop gives up, in SSD's code too


# ------------------------------------------------------------------------------------------------
# Size and place


# The rules of the reference codes for a side in px that is scaled by to / of, in their arithmetic:
# products of floats decide at exact halves and, where they are cut off, at whole numbers too.
ROUNDINGS = {
    "half_up": lambda side, to, of: int(side * (to / of) + 0.5),  # mmcv's `imrescale`
    "half_even": lambda side, to, of: round(side * (to / of)),  # YOLOv5's detect.py
    "down": lambda side, to, of: int(side * (to / of)),  # YOLOv5's train.py and val.py
    "up": lambda side, to, of: math.ceil(side * (to / of)),  # these two since December 2022
    "whole": lambda side, to, of: side * to // of,  # darknet's `letterbox_image`
}

# How pictures are made smaller; all are made larger by bilinear interpolation.
SHRINKS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


def resize_keep_ratio(
    record: dict[str, Any],
    height: int,
    width: int,
    limits: tuple[int, int] | None = None,
    pad_value: int | tuple[int, int, int] = 0,
    rounding: str = "half_up",
    shrink: str = "linear",
) -> dict[str, Any]:
    """The largest picture of the same ratio that fits into height x width px.

    Boxes follow the ratio of the rounded sides, axis by axis.

    Args:
      limits: (long, short) px that the longer and the shorter side may not exceed either, as
        (1333, 800) of the usual COCO setting; None for no such limit.
      pad_value: see `resize_fixed`.
      rounding: of the sides, one of `ROUNDINGS`.
      shrink: see `resize_fixed`.
    """
    w, h = _sides(record).tolist()
    bounds = [(height, h), (width, w)]
    if limits is not None:
        bounds += [(limits[0], max(h, w)), (limits[1], min(h, w))]
    sides = _keep_ratio((h, w), bounds, (height, width), rounding)
    return resize_fixed(record, *sides, pad_value, shrink)


def _keep_ratio(size, bounds, canvas, rounding):
    """Height, width scaled by the smallest to / of in `bounds`: at least 1, at most the canvas."""
    to, of = min(bounds, key=lambda bound: bound[0] / bound[1])
    scaled = [ROUNDINGS[rounding](x, to, of) for x in size]
    return tuple(min(most, max(1, x)) for x, most in zip(scaled, canvas, strict=True))


def resize_fixed(
    record: dict[str, Any],
    height: int,
    width: int,
    pad_value: int | tuple[int, int, int] = 0,
    shrink: str = "linear",
) -> dict[str, Any]:
    """The picture, or the record's window, stretched to exactly height x width px (bilinear).

    Where the window reaches beyond the image, the edges of the image are put on whole px of the
    result, and the boxes follow the ratio that this gives, axis by axis.

    Args:
      pad_value: 0..255 around the image, one number or one for each of R, G, B.
      shrink: interpolation where no side becomes longer, one of `SHRINKS`.
    """
    image = record["image"]
    window = np.array(_window(record))  # [4] xyxy
    part = np.clip(window, 0, np.tile(image.shape[1::-1], 2))  # the image within the window
    to_size = np.array([width, height]) / _sides(record)
    target = np.rint((part - np.tile(window[:2], 2)) * np.tile(to_size, 2)).astype(int)
    target[:2] = np.minimum(target[:2], [width - 1, height - 1])
    target[2:] = np.maximum(target[2:], target[:2] + 1)  # an image is 1 px at least

    x1, y1, x2, y2 = part.tolist()
    left, top, right, bottom = target.tolist()
    image = image[y1:y2, x1:x2]
    if image.shape[:2] != (bottom - top, right - left):
        smaller = bottom - top <= y2 - y1 and right - left <= x2 - x1
        interpolation = SHRINKS[shrink] if smaller else cv2.INTER_LINEAR
        image = cv2.resize(image, (right - left, bottom - top), interpolation=interpolation)
    if image.shape[:2] != (height, width):
        image = _on_canvas(image, (height, width), (top, left), pad_value)
    scale = (target[2:] - target[:2]) / (part[2:] - part[:2])
    record = {name: value for name, value in record.items() if name != "window"}
    moved = _move(record, image, scale=scale, shift=target[:2] - part[:2] * scale)
    # A side that ends at the border may be rounded beyond it.
    low, high = np.tile(target[:2], 2), np.tile(target[2:], 2)
    moved["boxes"] = np.clip(moved["boxes"], low.astype(np.float32), high.astype(np.float32))
    return moved


def draw_window(record: dict[str, Any], pad_value: int | tuple[int, int, int]) -> dict[str, Any]:
    """The record with its window as the picture, every pixel as it was."""
    width, height = _sides(record).tolist()
    return resize_fixed(record, height, width, pad_value)


def letterbox(
    record: dict[str, Any],
    height: int,
    width: int,
    pad_value: int | tuple[int, int, int],
    rounding: str = "half_up",
    shrink: str = "linear",
) -> dict[str, Any]:
    """The picture of `letterbox_sides` in the middle of height x width px, see `centre`."""
    w, h = _sides(record).tolist()
    sides = letterbox_sides((h, w), (height, width), rounding)
    return centre(resize_fixed(record, *sides, pad_value, shrink), (height, width), pad_value)


def letterbox_sides(
    size: tuple[int, int], canvas: tuple[int, int], rounding: str = "half_up"
) -> tuple[int, int]:
    """Height, width of the largest picture of the ratio of `size`; arguments are (height, width).

    The scale is that of the square around the canvas where the rounded sides fit, as in YOLOv5's
    `letterbox`: 1024x820 px are 640x512 on 640x512 by `half_even`, although 512.5 are cut.
    """
    side, longest = max(canvas), max(size)
    sides = [ROUNDINGS[rounding](x, side, longest) for x in size]
    if any(x > most for x, most in zip(sides, canvas, strict=True)):
        return _keep_ratio(size, zip(canvas, size, strict=True), canvas, rounding)
    return tuple(max(1, x) for x in sides)


def centre(
    record: dict[str, Any], canvas: tuple[int, int], pad_value: int | tuple[int, int, int]
) -> dict[str, Any]:
    """The picture in the middle of a canvas of (height, width) px, which has room for it.

    Of an odd number of px left over, the one more comes right or below, as in YOLOv5 and darknet.
    The border belongs to the content, as there: `image_size` is that of the canvas.
    """
    h, w = record["image"].shape[:2]
    top, left = (canvas[0] - h) // 2, (canvas[1] - w) // 2
    image = _on_canvas(record["image"], canvas, (top, left), pad_value)
    return _move(record, image, scale=(1, 1), shift=(left, top))


def pad(
    record: dict[str, Any], canvas: tuple[int, int], pad_value: int | tuple[int, int, int]
) -> dict[str, Any]:
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
    moved["image"] = _on_canvas(record["image"], canvas, (0, 0), pad_value)
    return moved


def mirror_horizontal(record: dict[str, Any]) -> dict[str, Any]:
    """Left and right exchanged: x becomes width - x."""
    image = np.ascontiguousarray(record["image"][:, ::-1])
    return _move(record, image, scale=(-1, 1), shift=(image.shape[1], 0))


def mirror_vertical(record: dict[str, Any]) -> dict[str, Any]:
    """Top and bottom exchanged: y becomes height - y."""
    image = np.ascontiguousarray(record["image"][::-1])
    return _move(record, image, scale=(1, -1), shift=(0, image.shape[0]))


def flip_horizontal(probability: float) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, mirrored left to right with this probability."""
    return lambda record, rng: mirror_horizontal(record) if rng.random() < probability else record


def flip_vertical(probability: float) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, mirrored top to bottom with this probability."""
    return lambda record, rng: mirror_vertical(record) if rng.random() < probability else record


# ------------------------------------------------------------------------------------------------
# Windows


def expand(probability: float, most: float) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, the window made larger around the picture with this probability.

    SSD's "zoom out" (arXiv:1512.02325, section 3.6; mmdetection's `Expand`): both sides times one
    ratio, uniform in 1..most, with the picture at any place in it.
    """

    def apply(record, rng):
        if rng.random() >= probability:
            return record
        window, sides = _window(record), _sides(record)
        larger = (sides * rng.uniform(1, most)).astype(int)
        corner = window[:2] - rng.integers(0, larger - sides + 1)
        return {**record, "window": _whole(corner, corner + larger)}

    return apply


def crop_random(probability: float, size: tuple[float, float]) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, cropped with this probability to a window anywhere in the old one.

    mmdetection's `RandomCrop` with crop_type "relative_range": the sides are uniform parts `size`,
    (least, largest), of the old ones, each by itself, and a window that shows no object of a
    picture with objects is drawn anew.  After `TRIES` windows the picture stays whole.  Which
    objects stay is SSD's rule, see `crop`; mmdetection keeps every object that shows at all.
    """

    def apply(record, rng):
        if rng.random() >= probability:
            return record
        sides = _sides(record)
        smaller = np.maximum(1, (sides * rng.uniform(*size, (TRIES, 2)) + 0.5).astype(int))
        corner = _window(record)[:2] + rng.integers(0, sides - smaller + 1)
        windows = np.concatenate([corner, corner + smaller], axis=1)
        return _crop_to_first(record, windows) or record

    return apply


def crop_min_iou(
    min_ious: Sequence[float], min_size: float = 0.3, max_ratio: float = 2.0
) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, cropped to a window that overlaps the objects, or left whole.

    SSD's sampling (arXiv:1512.02325, section 2.2): with equal chances the picture stays whole, the
    window must have at least one of `min_ious` with the objects, or any window will do.  The
    centre of an object must lie in it in any case.  As mmdetection's `MinIoURandomCrop`, the least
    IoU of all objects counts, where the original code asks it of one object; and where `TRIES`
    windows do not suit, the choice is made anew.

    Args:
      min_ious: sequence of IoUs.
      min_size: least part of each side.
      max_ratio: of the longer to the shorter side of a window.
    """

    def apply(record, rng):
        sides = _sides(record)
        while True:
            choice = rng.integers(len(min_ious) + 2)
            if choice == 0:
                return record
            smaller = rng.uniform(min_size, 1, (TRIES, 2)) * sides
            corner = rng.uniform(0, 1, (TRIES, 2)) * (sides - smaller)
            within = np.concatenate([corner, corner + smaller], axis=1).astype(int)
            width, height = (within[:, 2:] - within[:, :2]).T
            right = (np.minimum(width, height) > 0) & (height <= max_ratio * width)
            right &= width <= max_ratio * height
            windows = within[right] + np.tile(_window(record)[:2], 2)
            min_iou = (*min_ious, 0)[choice - 1]
            cropped = _crop_to_first(record, windows, min_iou)
            if cropped is not None:
                return cropped

    return apply


def crop_center(side: int, scales: Sequence[float], border: int) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, cropped to a square around a point well inside the picture.

    CornerNet's cropping (arXiv:1808.01244, section 4.1; mmdetection's `RandomCenterCropPad`): the
    square may reach beyond the picture, and shows the padding there.  A square that shows no object
    of a picture with objects is drawn anew; after `TRIES` squares the picture stays whole.

    Args:
      side: px of the image, before the resizing.
      scales: of the side, one of which is drawn.
      border: px that the centre keeps from every edge, halved until twice as much fits.
    """

    def apply(record, rng):
        width, height = sides = _sides(record)
        square = int(side * scales[rng.integers(len(scales))])
        margins = np.array([_margin(border, width), _margin(border, height)])
        centres = _window(record)[:2] + rng.integers(margins, sides - margins, (TRIES, 2))
        corner = centres - square // 2
        windows = np.concatenate([corner, corner + square], axis=1)
        return _crop_to_first(record, windows) or record

    return apply


def crop_jitter(jitter: float) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, each side of the window moved in or out, by itself.

    darknet's `jitter`, the part of width or height by which a side moves at most.  The window may
    reach beyond the picture, and shows the padding there.  As in darknet every object stays that
    shows at all, clipped; darknet leaves out those under 1 px of the network's input.
    """

    def apply(record, rng):
        inwards = (np.tile(_sides(record), 2) * rng.uniform(-jitter, jitter, 4)).astype(int)
        window = np.array(_window(record)) + inwards * [1, 1, -1, -1]
        return crop(record, window, by_centre=False)

    return apply


def _margin(border, side):
    """The border, halved until twice as much is less than the side."""
    while 2 * border >= side and border > 0:
        border //= 2
    return border


def crop(record: dict[str, Any], window, by_centre: bool = True) -> dict[str, Any]:
    """The record with this window, and the objects whose centre lies in it, clipped to it.

    Objects that are not to be learnt (`ignore`) go by the same rule.  `area` is multiplied by the
    part of the box that is left.

    Args:
      window: [4] whole px of the image, x1, y1, x2, y2.
      by_centre: False keeps all objects of which anything lies in the window.
    """
    boxes = record["boxes"]
    clipped = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2)).astype(np.float32)
    left, before = records_lib.box_areas(clipped), records_lib.box_areas(boxes)
    keep = left > 0
    if by_centre:
        keep &= _centres_inside(boxes, np.asarray(window)[None])[0]
    area = record["area"] * (left / np.where(before > 0, before, 1))
    cropped = {**record, "boxes": clipped, "area": area.astype(np.float32)}
    cropped["window"] = _whole(window[:2], window[2:])
    return records_lib.select_objects(cropped, keep)


def _crop_to_first(record, windows, min_iou=0.0):
    """The crop to the first of windows [k, 4] that suits; None where none does.

    It must show some of the image and, where there are objects to learn, the centre of one, and
    have `min_iou` with all of them.
    """
    boxes = record["boxes"][~record["ignore"]]
    high = np.minimum(windows[:, 2:], record["image"].shape[1::-1])
    suits = (high > np.maximum(windows[:, :2], 0)).all(axis=1)
    if len(boxes):
        suits &= _centres_inside(boxes, windows).any(axis=1)
        suits &= (_iou(windows, boxes) >= min_iou).all(axis=1)
    return crop(record, windows[suits.argmax()]) if suits.any() else None


def _centres_inside(boxes, windows):
    """Bool [k, n]: the centre of box n lies within window k, not on its edge."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    windows = windows[:, None]
    return ((windows[..., :2] < centre) & (centre < windows[..., 2:])).all(axis=2)


def _iou(windows, boxes):
    """[k, n] intersection over union of windows [k, 4], which have an area, with boxes [n, 4]."""
    low = np.maximum(windows[:, None, :2], boxes[:, :2])
    high = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    return overlap / (
        records_lib.box_areas(windows)[:, None] + records_lib.box_areas(boxes) - overlap
    )


def _window(record):
    h, w = record["image"].shape[:2]
    return record.get("window", (0, 0, w, h))


def _sides(record):
    """[2] int: width and height of the window."""
    x1, y1, x2, y2 = _window(record)
    return np.array([x2 - x1, y2 - y1])


def _whole(low, high):
    """A window as a tuple of ints."""
    return tuple(int(x) for x in (*low, *high))


# ------------------------------------------------------------------------------------------------
# Colours


def photometric(
    probability: float, brightness: float, contrast: float, saturation: float, hue: float
) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, its colours distorted with this probability.

    SSD's distortion as in mmdetection's `PhotoMetricDistortion`.  Each of the following happens
    with probability 0.5, and the contrast comes before or after saturation and hue, by a coin; see
    `distort` for the arithmetic.

    Args:
      probability: of any distortion.
      brightness: a number uniform in -brightness..brightness is added, of 255.
      contrast: factor uniform in 1 - contrast..1 + contrast.
      saturation: factor uniform in 1 - saturation..1 + saturation.
      hue: degrees uniform in -hue..hue are added.  Last, the channels are permuted.
    """
    neutral = np.array([0, 1, 1, 0])
    spread = np.array([brightness, contrast, saturation, hue])

    def apply(record, rng):
        if rng.random() >= probability:
            return record
        happens = rng.random(5) < 0.5
        amounts = np.where(happens[:4], rng.uniform(neutral - spread, neutral + spread), neutral)
        contrast_last = rng.random() < 0.5
        channels = rng.permutation(3) if happens[4] else (0, 1, 2)
        image = distort(record["image"], *amounts.tolist(), contrast_last, channels)
        return {**record, "image": image}

    return apply


def distort(
    image,
    brightness: float = 0.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    contrast_last: bool = False,
    channels: Sequence[int] = (0, 1, 2),
):
    """A picture of other colours, computed in float32 and rounded once, half to even.

    In this order: `+ brightness`, `* contrast`, in HSV S `* saturation` and H `+ hue` degrees,
    `* contrast` here instead if `contrast_last`, the channels in another order.  Values are
    clipped to 0..255 before HSV and at the end.  mmdetection clips neither, and gives dark px that
    the brightness made negative a wrong, light colour: OpenCV divides by the absolute V.

    Args:
      image: [h, w, 3] uint8 RGB; not changed.
    Returns:
      [h, w, 3] uint8.
    """
    colours = image.astype(np.float32) + np.float32(brightness)
    if not contrast_last:
        colours *= np.float32(contrast)
    np.clip(colours, 0, 255, out=colours)
    if saturation != 1 or hue != 0:
        hsv = cv2.cvtColor(colours, cv2.COLOR_RGB2HSV)  # H 0..360, S 0..1, V 0..255
        turned = hsv[..., 0] + np.float32(hue % 360)
        # OpenCV wants 0..360; NumPy's % takes longer than all the rest together.
        hsv[..., 0] = np.subtract(turned, 360, out=turned, where=turned >= 360)
        hsv[..., 1] *= np.float32(saturation)
        colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast_last:
        colours *= np.float32(contrast)
    np.rint(np.clip(colours, 0, 255, out=colours), out=colours)
    return np.ascontiguousarray(colours.astype(np.uint8)[..., channels])


def hsv(
    probability: float, gains: tuple[float, float, float], form: str
) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, with this probability with other hue, saturation and value.

    Computed by tables on OpenCV's HSV of 8 bits, whose hue is 0..179 and goes round, in one of two
    forms:

      "yolov5": each is multiplied by a factor uniform in 1 - gain..1 + gain; ultralytics'
        `augment_hsv`, which cuts the fractions off.
      "darknet": a part of the circle uniform in -gain..gain is added to the hue; saturation and
        value are multiplied by a factor uniform in 1..gain or, by a coin each, divided by it
        (`random_distort_image`).

    Args:
      gains: three numbers: of hue, saturation and value.
    """

    def apply(record, rng):
        if rng.random() >= probability:
            return record
        u = rng.uniform(-1, 1, 3)
        levels = np.arange(256.0)
        if form == "yolov5":
            factors = 1 + u * gains
            tables = levels[:, None] * factors
            tables[:, 0] %= 180
        else:
            factors = 1 + abs(u[1:]) * (np.array(gains[1:]) - 1)
            factors = np.where(u[1:] < 0, 1 / factors, factors)
            hue = (levels + np.rint(u[0] * gains[0] * 180)) % 180
            tables = np.stack([hue, *np.rint(levels * factors[:, None])], axis=1)
        return {**record, "image": recolour(record["image"], np.clip(tables, 0, 255))}

    return apply


def recolour(image, tables):
    """The image [h, w, 3] uint8 RGB with each of H, S, V looked up in tables [256, 3].

    Fractions in the tables are cut off.
    """
    converted = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    converted = cv2.LUT(converted, np.ascontiguousarray(tables[None].astype(np.uint8)))
    return cv2.cvtColor(converted, cv2.COLOR_HSV2RGB)


# ------------------------------------------------------------------------------------------------
# Holes


def cut_out(
    probability: float,
    holes: tuple[int, int],
    size: tuple[float, float],
    pad_value: int | tuple[int, int, int],
) -> Callable[..., dict[str, Any]]:
    """(record, rng) -> record, with this probability with rectangles of one colour; boxes stay.

    Cutout (arXiv:1708.04552, section 3): centres are uniform over the picture, so a hole may reach
    out of it.  As in mmdetection's `CutOut` there are several, and their sides are parts of those
    of the picture.

    Args:
      holes: (least, largest) number.
      size: (least, largest) part of a side, uniform, each side by itself.
      pad_value: 0..255, one number or one for each of R, G, B.
    """

    def apply(record, rng):
        _check_drawn(record)
        if rng.random() >= probability:
            return record
        image = record["image"].copy()
        sides = np.array(image.shape[:2])
        for _ in range(rng.integers(holes[0], holes[1] + 1)):
            hole = np.maximum(1, np.rint(sides * rng.uniform(*size, 2))).astype(int)
            low = rng.integers(0, sides) - hole // 2
            y1, x1 = np.maximum(low, 0)
            y2, x2 = low + hole
            image[y1:y2, x1:x2] = pad_value
        return {**record, "image": image}

    return apply


# ------------------------------------------------------------------------------------------------


def _check_drawn(record):
    if "window" in record:
        raise ValueError(f"the window {record['window']} is not drawn; resize the record first")


def _on_canvas(image, canvas, corner, pad_value):
    """uint8 [*canvas, 3] with the image at (top, left) `corner`."""
    top, left = corner
    h, w = image.shape[:2]
    picture = np.empty((*canvas, 3), np.uint8)
    picture[:] = pad_value
    picture[top : top + h, left : left + w] = image
    return picture


def _move(record, image, scale, shift):
    """The record with another picture, its boxes and placement moved by xy * scale + shift."""
    _check_drawn(record)
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

"""Transforms: record in, new record out; boxes and `placement` move exactly with the pixels.

Most functions transform a record directly.  Random transforms take probabilities or ranges and
return a function (record, rng) -> record, whose only source of randomness is the generator.  No
transform changes the record it is given.  The order of use is photometric, expand, crop, resize,
flips, hsv, cut_out, pad; `detlab.data.mosaic` and `affine` come after the resize.

**Expand and the crops move no pixels.**  They only set the record's `window`: the visible part of
the plane in whole px (x1, y1, x2, y2) of the image, which may reach beyond the image.  The resize
that follows draws the window.  Pixels are thus interpolated once, and a photograph expanded to four
times its sides is never in memory.  `draw_window` draws the window at its own size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from detlab.data import records as records_lib

TRIES = 50  # windows drawn before a crop gives up, as in SSD's code


# ------------------------------------------------------------------------------------------------
# Size and place


# How the reference codes round a side in px that is scaled by to / of, in their arithmetic: float
# products decide at exact halves and, where fractions are cut off, at whole numbers too.
ROUNDINGS = {
    "half_up": lambda side, to, of: int(side * (to / of) + 0.5),  # mmcv's `imrescale`
    "half_even": lambda side, to, of: round(side * (to / of)),  # YOLOv5's detect.py
    "down": lambda side, to, of: int(side * (to / of)),  # YOLOv5's train.py and val.py
    "up": lambda side, to, of: math.ceil(side * (to / of)),  # these two since December 2022
    "whole": lambda side, to, of: side * to // of,  # darknet's `letterbox_image`
}

# Interpolation for making images smaller; enlarging is bilinear.  "corners" is for both, see
# `resize_corners`.
SHRINKS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "corners": None}


def resize_keep_ratio(
    record: dict[str, Any],
    height: int,
    width: int,
    limits: tuple[int, int] | None = None,
    pad_value: int | tuple[int, int, int] = 0,
    rounding: str = "half_up",
    shrink: str = "linear",
) -> dict[str, Any]:
    """Resizes to the largest size of the same aspect ratio that fits into height x width px.

    Boxes are scaled per axis by the ratio of the rounded sides.

    Args:
      limits: (long, short) px for the longer and the shorter side, such as (1333, 800) in the usual
        COCO setting; None for no further limits.
      pad_value: see `resize_fixed`.
      rounding: of the sides, one of `ROUNDINGS`.
      shrink: see `resize_fixed`.
    """
    w, h = _sides(record).tolist()
    sides = fit_sides((h, w), (height, width), limits, rounding)
    return resize_fixed(record, *sides, pad_value, shrink)


def fit_sides(
    size: tuple[int, int],
    canvas: tuple[int, int],
    limits: tuple[int, int] | None,
    rounding: str,
) -> tuple[int, int]:
    """(height, width) px to which `resize_keep_ratio` resizes an image of (height, width) px."""
    h, w = size
    bounds = [(canvas[0], h), (canvas[1], w)]
    if limits is not None:
        bounds += [(limits[0], max(h, w)), (limits[1], min(h, w))]
    return _keep_ratio((h, w), bounds, canvas, rounding)


def _keep_ratio(size, bounds, canvas, rounding):
    """(height, width) scaled by the smallest to / of in `bounds`, clipped to 1 px .. `canvas`."""
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
    """Stretches the image, or the record's window, to exactly height x width px (bilinear).

    If the window reaches beyond the image, the edges of the image are placed on whole px of the
    result, and boxes are scaled per axis by the ratio that this gives.

    Args:
      pad_value: 0..255 around the image, one number or one for each of R, G, B.
      shrink: interpolation if no side becomes longer, one of `SHRINKS`; "corners" always, and the
        image becomes float32.
    """
    # Python's numbers, which are float64 too: NumPy takes longer for so few.
    image = record["image"]
    left, top, right, bottom = _window(record)
    rows, columns = image.shape[:2]
    x1, x2 = (min(max(x, 0), columns) for x in (left, right))  # the image within the window
    y1, y2 = (min(max(y, 0), rows) for y in (top, bottom))
    x_to, y_to = width / (right - left), height / (bottom - top)
    # Its place in the result; an image has at least 1 px.
    left, right = round((x1 - left) * x_to), round((x2 - left) * x_to)
    top, bottom = round((y1 - top) * y_to), round((y2 - top) * y_to)
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)

    image = image[y1:y2, x1:x2]
    if shrink == "corners":
        image = resize_corners(image, bottom - top, right - left)
    elif image.shape[:2] != (bottom - top, right - left):
        smaller = bottom - top <= y2 - y1 and right - left <= x2 - x1
        interpolation = SHRINKS[shrink] if smaller else cv2.INTER_LINEAR
        image = cv2.resize(image, (right - left, bottom - top), interpolation=interpolation)
    if image.shape[:2] != (height, width):
        image = _on_canvas(image, (height, width), (top, left), pad_value)
    scale = (right - left) / (x2 - x1), (bottom - top) / (y2 - y1)
    record = {name: value for name, value in record.items() if name != "window"}
    moved = _move(record, image, scale=scale, shift=(left - x1 * scale[0], top - y1 * scale[1]))
    # Rounding may move a side beyond the border.
    low = np.array([left, top, left, top], np.float32)
    high = np.array([right, bottom, right, bottom], np.float32)
    moved["boxes"] = np.clip(moved["boxes"], low, high)
    return moved


def resize_corners(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes as darknet's `resize_image`: bilinear, first and last px stay first and last.

    Nothing is smoothed when the image becomes smaller, and nothing is rounded: rounded to uint8, a
    photograph has scores that differ by up to 0.03.

    Args:
      image: [h, w, 3] in 0..255.
    Returns:
      [height, width, 3] float32 in 0..255.
    """

    def along(x, size, axis):
        length = x.shape[axis]
        step = np.float32((length - 1) / max(size - 1, 1))
        place = np.arange(size, dtype=np.float32) * step
        place[-1] = length - 1
        low = np.clip(place.astype(int), 0, max(length - 2, 0))
        part = (place - low.astype(np.float32)).reshape([-1 if i == axis else 1 for i in range(3)])
        low_px = x.take(low, axis)
        return low_px + part * (x.take(np.minimum(low + 1, length - 1), axis) - low_px)

    return along(along(image.astype(np.float32), height, 0), width, 1)  # whole rows first


def draw_window(record: dict[str, Any], pad_value: int | tuple[int, int, int]) -> dict[str, Any]:
    """The record with its window as the image, without resampling."""
    width, height = _sides(record).tolist()
    return resize_fixed(record, height, width, pad_value)


def letterbox(
    record: dict[str, Any],
    height: int,
    width: int,
    pad_value: int | tuple[int, int, int],
    rounding: str = "half_up",
    shrink: str = "linear",
    longest: int = 0,
) -> dict[str, Any]:
    """Resizes to `letterbox_sides` and centres the image on height x width px, see `centre`.

    With `longest`, its longer side gets this many px, and the canvas must have room for it.  With
    the rounding "whole" `placement` has half of the border unrounded, as darknet maps predicted
    boxes back: by half a px more than the image moved if the border has an odd number of px.
    """
    w, h = _sides(record).tolist()
    square = (longest, longest) if longest else (height, width)
    sides = letterbox_sides((h, w), square, rounding)
    resized = resize_fixed(record, *sides, pad_value, shrink)
    centred = centre(resized, (height, width), pad_value)
    if rounding == "whole":
        centred["placement"][2:] += [(width - sides[1]) % 2 / 2, (height - sides[0]) % 2 / 2]
    return centred


def letterbox_sides(
    size: tuple[int, int], canvas: tuple[int, int], rounding: str = "half_up"
) -> tuple[int, int]:
    """(height, width) of the largest image with the aspect ratio of `size` on a canvas.

    The scale is that of the square around the canvas if the rounded sides fit, as in YOLOv5's
    `letterbox`: 1024x820 px becomes 640x512 on 640x512 with `half_even`, which rounds 512.5 down.

    Args:
      size, canvas: (height, width) px.
      rounding: one of `ROUNDINGS`.
    """
    side, longest = max(canvas), max(size)
    sides = [ROUNDINGS[rounding](x, side, longest) for x in size]
    if any(x > most for x, most in zip(sides, canvas, strict=True)):
        return _keep_ratio(size, zip(canvas, size, strict=True), canvas, rounding)
    return tuple(max(1, x) for x in sides)


def centre(
    record: dict[str, Any], canvas: tuple[int, int], pad_value: int | tuple[int, int, int]
) -> dict[str, Any]:
    """Centres the image on a canvas of (height, width) px that is large enough.

    If an odd number of px is left over, the extra px goes to the right or the bottom, as in YOLOv5
    and darknet.  As there, the border counts as content: `image_size` is that of the canvas.
    """
    h, w = record["image"].shape[:2]
    top, left = (canvas[0] - h) // 2, (canvas[1] - w) // 2
    image = _on_canvas(record["image"], canvas, (top, left), pad_value)
    return _move(record, image, scale=(1, 1), shift=(left, top))


def pad(
    record: dict[str, Any],
    canvas: tuple[int, int],
    pad_value: int | tuple[int, int, int],
    out: np.ndarray | None = None,
) -> dict[str, Any]:
    """Places the image in the top left corner of a canvas.

    Args:
      canvas: (height, width) px.
      pad_value: 0..255, one number or one for each of R, G, B.
      out: [*canvas, 3] that becomes the image, contiguous; None makes a new array.
    Raises:
      ValueError: the image is larger than the canvas.
    """
    h, w = record["image"].shape[:2]
    if h > canvas[0] or w > canvas[1]:
        raise ValueError(f"an image of {h}x{w} px does not fit on a canvas of {canvas} px")
    moved = _move(record, record["image"], scale=(1, 1), shift=(0, 0))
    moved["image"] = _on_canvas(record["image"], canvas, (0, 0), pad_value, out)
    return moved


def mirror_horizontal(record: dict[str, Any]) -> dict[str, Any]:
    """Swaps left and right: x becomes width - x."""
    image = cv2.flip(record["image"], 1)  # a tenth of the time of a reversed copy in NumPy
    return _move(record, image, scale=(-1, 1), shift=(image.shape[1], 0))


def mirror_vertical(record: dict[str, Any]) -> dict[str, Any]:
    """Swaps top and bottom: y becomes height - y."""
    image = cv2.flip(record["image"], 0)
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
    """(record, rng) -> record, its window enlarged around the image with this probability.

    SSD's "zoom out" (arXiv:1512.02325, section 3.6; mmdetection's `Expand`): both sides are
    multiplied by one ratio, uniform in 1..most, and the image lies anywhere in the window.
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

    mmdetection's `RandomCrop` with crop_type "relative_range": each side is drawn independently, as
    a fraction of the old one uniform in `size`, (least, largest).  If the image has objects, a
    window that shows none is drawn again.  After `TRIES` windows the image stays whole.  Objects
    are kept by SSD's rule, see `crop`; mmdetection keeps every object that is visible at all.
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

    SSD's sampling (arXiv:1512.02325, section 2.2) draws one option: leave the image whole, require
    one of `min_ious` as the least IoU of the window with the objects, or accept any window.  All
    options are equally likely.  A window must always contain the centre of an object.  As in
    mmdetection's `MinIoURandomCrop`, every object must reach the IoU; the original code asks this
    of only one.  If `TRIES` windows fail, another option is drawn.

    Args:
      min_ious: sequence of IoUs.
      min_size: least fraction of each side.
      max_ratio: largest ratio of the longer to the shorter side of a window.
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
    """(record, rng) -> record, cropped to a square around a point well inside the image.

    CornerNet's cropping (arXiv:1808.01244, section 4.1; mmdetection's `RandomCenterCropPad`): the
    square may reach beyond the image and shows padding there.  If the image has objects, a square
    that shows none is drawn again; after `TRIES` squares the image stays whole.

    Args:
      side: px of the image, before the resize.
      scales: factors of the side; one is drawn.
      border: least px from the centre to every edge, halved until twice as much fits.
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
    """(record, rng) -> record, each side of its window moved in or out independently.

    darknet's `jitter`: the largest move of a side, as a fraction of the width or height.  The
    window may reach beyond the image and shows padding there.  As in darknet, every object that is
    visible at all is kept, clipped; darknet drops those under 1 px of the network's input.
    """

    def apply(record, rng):
        inwards = (np.tile(_sides(record), 2) * rng.uniform(-jitter, jitter, 4)).astype(int)
        window = np.array(_window(record)) + inwards * [1, 1, -1, -1]
        return crop(record, window, by_centre=False)

    return apply


def _margin(border, side):
    """The border, halved until twice its value is less than the side."""
    while 2 * border >= side and border > 0:
        border //= 2
    return border


def crop(record: dict[str, Any], window, by_centre: bool = True) -> dict[str, Any]:
    """The record with this window and the objects whose centre lies in it, clipped to it.

    Ignored objects follow the same rule.  `area` is multiplied by the fraction of the box that is
    left.

    Args:
      window: [4] whole px of the image, x1, y1, x2, y2.
      by_centre: False keeps all objects that overlap the window.
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
    """Crops to the first suitable one of windows [k, 4]; None if none is suitable.

    A window must show part of the image.  If there are objects to learn, it must contain the centre
    of one and have at least `min_iou` with all of them.
    """
    boxes = record["boxes"][~record["ignore"]]
    high = np.minimum(windows[:, 2:], record["image"].shape[1::-1])
    suits = (high > np.maximum(windows[:, :2], 0)).all(axis=1)
    if len(boxes):
        suits &= _centres_inside(boxes, windows).any(axis=1)
        suits &= (_iou(windows, boxes) >= min_iou).all(axis=1)
    return crop(record, windows[suits.argmax()]) if suits.any() else None


def _centres_inside(boxes, windows):
    """Bool [k, n]: whether the centre of box n lies inside window k, not on its edge."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    windows = windows[:, None]
    return ((windows[..., :2] < centre) & (centre < windows[..., 2:])).all(axis=2)


def _iou(windows, boxes):
    """IoU [k, n] of windows [k, 4], which have an area, with boxes [n, 4]."""
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

    SSD's distortion as in mmdetection's `PhotoMetricDistortion`.  Each change below, and last a
    permutation of the channels, happens with probability 0.5.  Contrast comes before or after
    saturation and hue with equal chances.  See `distort` for the arithmetic.

    Args:
      probability: of any distortion.
      brightness: a number uniform in -brightness..brightness is added, of 255.
      contrast: factor uniform in 1 - contrast..1 + contrast.
      saturation: factor uniform in 1 - saturation..1 + saturation.
      hue: degrees uniform in -hue..hue are added.
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
    """Changes the colours of an image in float32, rounding once, half to even.

    The order is `+ brightness`, `* contrast`, in HSV S `* saturation` and H `+ hue` degrees,
    `* contrast` here instead if `contrast_last`, and the permutation of the channels.  Values are
    clipped to 0..255 before HSV and at the end.  mmdetection clips neither: dark px that the
    brightness made negative get a wrong, light colour, because OpenCV divides by the absolute V.

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
        # OpenCV needs 0..360; NumPy's % takes longer than everything else together.
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
    """(record, rng) -> record, its hue, saturation and value changed with this probability.

    Uses lookup tables on OpenCV's 8-bit HSV, whose hue is 0..179 and wraps around.  There are two
    forms:

      "yolov5": each is multiplied by a factor uniform in 1 - gain..1 + gain, and fractions are cut
        off; ultralytics' `augment_hsv`.
      "darknet": the hue moves by a fraction of the circle uniform in -gain..gain; saturation and
        value are each multiplied or, with probability 0.5, divided by a factor uniform in 1..gain
        (`random_distort_image`).

    Args:
      gains: for hue, saturation and value.
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
    """(record, rng) -> record, with rectangles filled in `pad_value` with this probability.

    Cutout (arXiv:1708.04552, section 3): centres are uniform over the image, so a hole may reach
    beyond it.  As in mmdetection's `CutOut`, there are several holes, and their sides are fractions
    of the image's sides.  All boxes are kept.

    Args:
      holes: (least, largest) number.
      size: (least, largest) fraction of a side, uniform and independent for each side.
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
            fill(image[y1:y2, x1:x2], pad_value)
        return {**record, "image": image}

    return apply


# ------------------------------------------------------------------------------------------------


def _check_drawn(record):
    if "window" in record:
        raise ValueError(f"the window {record['window']} is not drawn yet; resize the record first")


def _on_canvas(image, canvas, corner, pad_value, out=None):
    """[*canvas, 3] with the image at (top, left) `corner`; written to `out` if given."""
    top, left = corner
    h, w = image.shape[:2]
    picture = np.empty((*canvas, 3), image.dtype) if out is None else out
    fill(picture[:top], pad_value)
    fill(picture[top + h :], pad_value)
    fill(picture[top : top + h, :left], pad_value)
    fill(picture[top : top + h, left + w :], pad_value)
    picture[top : top + h, left : left + w] = image
    return picture


def fill(image: np.ndarray, colour: int | tuple[int, int, int]) -> None:
    """Fills an image [h, w, 3], or a part of one, with one number or one per channel."""
    # Row by row: NumPy takes forty times as long to repeat three numbers px by px.
    row = np.empty(image.shape[1:], image.dtype)
    row[:] = colour
    image[:] = row


def _move(record, image, scale, shift):
    """The record with another image; boxes and placement move by xy * scale + shift."""
    _check_drawn(record)
    scale, shift = np.array(scale, np.float64), np.array(shift, np.float64)
    given, boxes = record["boxes"], np.empty(record["boxes"].shape, np.float32)
    corners = given[:, :2] * scale + shift, given[:, 2:] * scale + shift  # float64
    boxes[:, :2] = np.minimum(*corners)
    boxes[:, 2:] = np.maximum(*corners)
    placement = np.empty(4, np.float32)
    before = record.get("placement", _IN_PLACE)
    placement[:2] = before[:2] * scale
    placement[2:] = before[2:] * scale + shift
    return {
        **record,
        "image": image,
        "boxes": boxes,
        "area": (record["area"] * abs(scale[0] * scale[1])).astype(np.float32),
        "placement": placement,
        "image_size": image.shape[:2],
    }


_IN_PLACE = np.array([1, 1, 0, 0], np.float32)  # the placement of an image that has not moved

"""Draws boxes on images, without a window.

Images are uint8 RGB [H, W, 3].  A class has the same colour in every picture of every run.
"""

import colorsys
import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from detlab.viz import letters

GREY = (160, 160, 160)
BACKGROUND = (32, 32, 32)
FONT = cv2.FONT_HERSHEY_SIMPLEX
MAX_ENLARGED = 2000  # px; limits the longer side, for very long, thin images


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class, three ints in 0..255.

    Hues are a golden ratio apart, so that small labels differ most; three shades alternate.
    """
    saturation, value = ((0.9, 1.0), (0.5, 1.0), (0.9, 0.7))[label % 3]
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, saturation, value)
    return tuple(round(255 * channel) for channel in rgb)


def draw(
    image,
    boxes,
    labels,
    class_names: Sequence[str],
    scores=None,
    ignored=None,
    min_side: int = 480,
    captions: Sequence[str] | None = None,
    shades=None,
):
    """Draws boxes and their class names on a copy of the image.

    Lines and text scale with the image.  A small image is first enlarged by an integer factor,
    because text on it would be illegible.  Boxes with higher scores are drawn on top.

    Args:
      image: [H, W, 3] uint8 RGB; not changed.
      boxes: [n, 4] xyxy, px of the image; may extend beyond it.
      labels: [n] int in 0..C-1.
      class_names: C names, in any script; see `letters`.
      scores: [n], or None.
      ignored: [n] bool: boxes (crowd, difficult) to draw grey and dashed, or None.
      min_side: lower bound of the result's shorter side, px, unless the longer side would exceed
        `MAX_ENLARGED`; 0 keeps the size.
      captions: n texts instead of class names and scores, or None; "" writes nothing.
      shades: [n, 3] RGB, 0..255, instead of the colours of the classes, or None.
    Returns:
      [H * f, W * f, 3] uint8 RGB for an integer f >= 1.
    Raises:
      ValueError: an image that is not uint8 [H, W, 3], arrays of different lengths, a label
        without a name.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3]")
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.asarray(labels, int)
    ranks = np.arange(len(labels)) if scores is None else np.asarray(scores)
    ignored = np.zeros(len(labels), bool) if ignored is None else np.asarray(ignored, bool)
    if not len(boxes) == len(labels) == len(ranks) == len(ignored):
        raise ValueError(
            f"{len(boxes)} boxes, {len(labels)} labels, {len(ranks)} scores and {len(ignored)}"
            " ignored flags; their numbers must be equal"
        )
    outside = labels[(labels < 0) | (labels >= len(class_names))]
    if len(outside):
        raise ValueError(f"label {outside[0]} is outside 0..{len(class_names) - 1}")

    short, long = sorted(image.shape[:2])
    factor = max(1, min(-(-min_side // short), MAX_ENLARGED // long))
    canvas = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    thickness = _thickness(canvas)
    order = np.argsort(ranks, kind="stable")
    if shades is None:
        shades = [GREY if ignored[i] else colour(label) for i, label in enumerate(labels)]
    colours = [tuple(int(channel) for channel in shade) for shade in shades]
    for i in order:
        _rectangle(canvas, boxes[i] * factor, colours[i], thickness, dashed=ignored[i])
    taken, texts = [], []
    # The box with the highest score gets the first choice of place; its text is drawn last.
    for i in order[::-1]:
        if captions is None:
            text = letters.spelling(class_names[labels[i]])
            text += "" if scores is None else f" {scores[i]:.2f}"
        else:
            text = letters.spelling(captions[i]) if captions[i] else ""
        if not text:
            continue
        place = _free_place(canvas, text, boxes[i] * factor, taken)
        taken.append(place)
        texts.append((text, place, colours[i]))
    for text, place, shade in texts[::-1]:
        _write(canvas, text, place, shade, _font(canvas))
    return canvas


def draw_pair(
    image,
    truth: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    min_side: int = 480,
):
    """Draws ground truth on the left and predictions on the right, with headings.

    Args:
      image: [H, W, 3] uint8 RGB.
      truth: `boxes` [n, 4], `labels` [n] and optionally `ignore` [n], see `draw`.
      predictions: `boxes` [k, 4], `labels` [k] and `scores` [k].
      class_names, min_side: see `draw`.
    Returns:
      [h, w, 3] uint8 RGB.
    """
    left = draw(
        image,
        truth["boxes"],
        truth["labels"],
        class_names,
        ignored=truth.get("ignore"),
        min_side=min_side,
    )
    right = draw(
        image,
        predictions["boxes"],
        predictions["labels"],
        class_names,
        scores=predictions["scores"],
        min_side=min_side,
    )
    return side_by_side({"ground truth": left, "predictions": right})


def side_by_side(pictures: Mapping[str, np.ndarray]):
    """Pictures of one height beside each other under their headings.

    Args:
      pictures: {heading: [h, w, 3] uint8 RGB}.
    Returns:
      [H, W, 3] uint8 RGB.
    """
    first = next(iter(pictures.values()))
    gap = np.full((first.shape[0], 4 * _thickness(first), 3), BACKGROUND, np.uint8)
    parts, starts, x = [], [], 0
    for picture in pictures.values():
        parts += [picture, gap]
        starts.append(x)
        x += picture.shape[1] + gap.shape[1]
    row = np.concatenate(parts[:-1], axis=1)
    _, height = _text_size(first, "")
    heading = np.full((2 * height, row.shape[1], 3), BACKGROUND, np.uint8)
    for text, x in zip(pictures, starts, strict=True):
        width, _ = _text_size(first, text)
        place = (x, height // 2, x + width, height // 2 + height)
        _write(heading, text, place, BACKGROUND, _font(first))
    return np.concatenate([heading, row])


def with_heading(image, text: str):
    """The image [H, W, 3] below a line of text that is cut off at its right edge: [h, W, 3]."""
    scale, stroke = max(0.5, min(image.shape[:2]) / 500), 1
    (_, height), baseline = cv2.getTextSize("Ag", FONT, scale, stroke)
    height += baseline + 2 * stroke + 2
    heading = np.full((height, image.shape[1], 3), BACKGROUND, np.uint8)
    place = (0, 0, image.shape[1], height)
    _write(heading, letters.spelling(text), place, BACKGROUND, (scale, stroke))
    return np.concatenate([heading, image])


def contact_sheet(
    images: Sequence[np.ndarray], columns: int = 4, cell: tuple[int, int] = (240, 320)
):
    """Arranges images in rows on one picture, each scaled to its cell and centred.

    Args:
      images: uint8 RGB images [h, w, 3] of any size.
      columns: cells per row; fewer if there are fewer images.
      cell: height, width, px.
    Returns:
      [h, w, 3] uint8 RGB.
    Raises:
      ValueError: there are no images.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap = 4
    height, width = cell
    sheet = np.empty((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.uint8)
    sheet[:] = BACKGROUND
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        fitted = fit(image, cell)
        top = gap + row * (height + gap) + (height - fitted.shape[0]) // 2
        left = gap + column * (width + gap) + (width - fitted.shape[1]) // 2
        sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return sheet


def fit(image, cell: tuple[int, int]):
    """Scales an image [H, W, 3] to the largest size [h, w, 3] that fits a cell (height, width)."""
    scale = min(cell[0] / image.shape[0], cell[1] / image.shape[1])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=interpolation)


def save(path: str | pathlib.Path, image, quality: int = 95) -> None:
    """Writes an image [H, W, 3], uint8 RGB, in the format of the suffix; creates its folder.

    Args:
      quality: of a JPEG, 0..100.
    Raises:
      OSError: OpenCV cannot write this suffix, or the path cannot be written.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        data = encode(image, path.suffix, quality)
    except ValueError as error:
        raise OSError(f"{path}: {error}") from error
    path.write_bytes(data)


def encode(image, suffix: str, quality: int = 95) -> bytes:
    """The content of a file with an image [H, W, 3], uint8 RGB; `quality` is that of a JPEG.

    Raises:
      ValueError: OpenCV cannot write this suffix.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    jpeg = suffix.lower() in (".jpg", ".jpeg")  # for others, OpenCV prints a warning
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if jpeg else []
    try:
        done, data = cv2.imencode(suffix, bgr, options)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"OpenCV cannot write images with the suffix {suffix!r}; use .png or .jpg")
    return data.tobytes()


def _thickness(canvas):
    """Line width, px: 2 at 480 px."""
    return max(1, round(min(canvas.shape[:2]) / 240))


def _font(canvas):
    """Font scale and stroke width: capitals of 11 px at 480 px."""
    scale = max(0.35, min(canvas.shape[:2]) / 960)
    return scale, max(1, round(scale * 1.5))


def _text_size(canvas, text):
    """Width and height, px, of the background of a text."""
    scale, stroke = _font(canvas)
    # The height of letters with ascender and descender, so that all backgrounds are equally high.
    (_, height), baseline = cv2.getTextSize("Ag", FONT, scale, stroke)
    height += baseline + 2 * stroke
    if text.isascii():
        (width, _), _ = cv2.getTextSize(text, FONT, scale, stroke)
    else:
        width = letters.mask(text, height).shape[1]
    return width + 2 * stroke + 4, height


def _free_place(canvas, text, box, taken):
    """The place for the text of a box: xyxy ints inside the picture.

    Tries above the box, inside it, below it, then the same at its right corner, and returns the
    first place that overlaps no text in `taken`, else the first one.
    """
    width, height = _text_size(canvas, text)
    x1, y1, x2, y2 = box
    corners = [
        (x1, y1 - height),
        (x1, y1),
        (x1, y2),
        (x2 - width, y1 - height),
        (x2 - width, y1),
        (x2 - width, y2),
        (x1, y2 - height),
        (x2 - width, y2 - height),
    ]
    places = []
    for x, y in corners:
        left = int(np.clip(round(x), 0, max(0, canvas.shape[1] - width)))
        top = int(np.clip(round(y), 0, max(0, canvas.shape[0] - height)))
        places.append((left, top, left + width, top + height))
    free = (place for place in places if not any(_meet(place, other) for other in taken))
    return next(free, places[0])


def _meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write(canvas, text, place, background, font):
    """Writes text on a filled rectangle, in place, in black or white for contrast."""
    scale, stroke = font
    _, baseline = cv2.getTextSize("Ag", FONT, scale, stroke)
    x1, y1, x2, y2 = place
    canvas[y1:y2, x1:x2] = background
    luminance = np.dot(background, (0.299, 0.587, 0.114))  # ITU-R BT.601
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    if not text.isascii():
        part = letters.mask(text, y2 - y1)[:, : canvas.shape[1] - (x1 + stroke + 2)]
        place = canvas[y1:y2, x1 + stroke + 2 :][: part.shape[0], : part.shape[1]]
        part = part[: place.shape[0], :, None] / 255
        place[:] = np.round(place * (1 - part) + np.array(ink) * part)
        return
    corner = (x1 + stroke + 2, y2 - baseline - stroke)
    cv2.putText(canvas, text, corner, FONT, scale, ink, stroke, cv2.LINE_AA)


def _rectangle(canvas, box, shade, thickness, dashed):
    """Draws the four sides in place; the box is clipped to the picture so that all are visible."""
    height, width = canvas.shape[:2]
    x1, x2 = (int(np.clip(round(x), 0, width - 1)) for x in box[0::2])
    y1, y2 = (int(np.clip(round(y), 0, height - 1)) for y in box[1::2])
    if not dashed:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), shade, thickness)
        return
    dash = 4 * thickness
    for x in range(x1, x2, 2 * dash):
        for y in (y1, y2):
            cv2.line(canvas, (x, y), (min(x + dash, x2), y), shade, thickness)
    for y in range(y1, y2, 2 * dash):
        for x in (x1, x2):
            cv2.line(canvas, (x, y), (x, min(y + dash, y2)), shade, thickness)

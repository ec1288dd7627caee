"""Shapes: a procedural data set, made on the fly and the same on every machine.

It has four classes of flat-coloured shapes on a textured background, for tests and for training
runs that need no download.  The difficulty is fixed: 1 to 6 objects of 16 to 70 px in 128x128 px,
colours drawn without regard to contrast, pixel noise of standard deviation 8, and later objects
drawn over earlier ones, covering at most half of any object's box.

An image depends only on (seed, split, index).  All arithmetic is on integers (or on integers held
exactly by float64), and nothing is anti-aliased, so no library version changes a pixel.
"""

from typing import Any

import numpy as np

CLASS_NAMES = ("rectangle", "ellipse", "triangle", "cross")
NUM_IMAGES = {"train": 4000, "val": 200}

_MAX_OBJECTS = 6
_STREAM = {"train": 0, "val": 1}  # part of each image's seed: the splits share no image
_SIDES = (16, 70)  # px in images of 128x128; scaled with the image size
_TRIES = 20  # placements tried before an object is dropped


class Shapes:
    """The source (see `detlab.data.records`).

    Args:
      split: "train" or "val".
      size: height and width of the images, px, at least 32.
      num_images: by default 4000 (train) or 200 (val).
      seed: a different seed gives a different data set.
    """

    class_names = CLASS_NAMES
    max_objects = _MAX_OBJECTS
    problems = ()
    dropped_boxes = clipped_boxes = skipped_records = filtered_records = 0

    def __init__(self, split="train", size=128, num_images=None, seed=0):
        if split not in NUM_IMAGES:
            raise ValueError(f"split is {split!r}; it must be one of {', '.join(NUM_IMAGES)}")
        if size < 32:
            raise ValueError(f"size is {size} px; it must be at least 32")
        self._split, self._size, self._seed = split, size, seed
        self._num_images = NUM_IMAGES[split] if num_images is None else num_images

    def __len__(self):
        return self._num_images

    def __getitem__(self, i):
        i = range(len(self))[i]
        rng = self._rng(i)
        boxes, labels = _draw_objects(rng, self._size)
        canvas = _background(rng, self._size)
        for box, label in zip(boxes, labels, strict=True):
            x1, y1, x2, y2 = box
            mask = _MASKS[label](rng, x2 - x1, y2 - y1)
            canvas[y1:y2, x1:x2][mask] = rng.integers(0, 256, 3)
        image = np.clip(canvas + _noise(rng, canvas.shape), 0, 255).astype(np.uint8)
        return {"image": image, **_annotation(boxes, labels, i)}

    def annotation(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return _annotation(*_draw_objects(self._rng(i), self._size), i)

    def size(self, i: int) -> tuple[int, int]:
        return self._size, self._size

    def name(self, i: int) -> str:
        return f"shapes/{self._split}/{i}"

    def image_id(self, i: int) -> int:
        return int(i)

    def _rng(self, i):
        return np.random.default_rng([self._seed, _STREAM[self._split], i])


def _annotation(boxes, labels, index):
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return {
        "boxes": boxes.astype(np.float32),
        "labels": labels.astype(np.int32),
        "ignore": np.zeros(len(boxes), bool),
        "area": (width * height).astype(np.float32),
        "index": index,
    }


def _draw_objects(rng, size):
    """Boxes int [n, 4] in the order they are drawn, and labels int [n]."""
    smallest, largest = (side * size // 128 for side in _SIDES)
    boxes = np.zeros((_MAX_OBJECTS, 4), np.int64)
    covered = np.zeros(_MAX_OBJECTS, np.int64)  # px of each box covered by later ones
    area = np.zeros(_MAX_OBJECTS, np.int64)
    n = 0
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        for _ in range(_TRIES):
            sides = rng.integers(smallest, largest + 1, 2)
            corner = rng.integers(0, size - sides + 1)
            low = np.maximum(boxes[:n, :2], corner)
            high = np.minimum(boxes[:n, 2:], corner + sides)
            overlap = np.prod(np.maximum(high - low, 0), axis=1)
            hides = 2 * (covered[:n] + overlap) > area[:n]
            if not (hides | (2 * overlap > sides[0] * sides[1])).any():
                boxes[n, :2], boxes[n, 2:] = corner, corner + sides
                covered[:n] += overlap
                area[n] = sides[0] * sides[1]
                n += 1
                break
    return boxes[:n], rng.integers(0, len(CLASS_NAMES), n)


# Each mask is bool [height, width] and touches all four sides of its box.


def _rectangle(rng, width, height):
    return np.ones((height, width), bool)


def _ellipse(rng, width, height):
    x = 2 * np.arange(width) + 1 - width  # twice the pixel centre's distance from the middle
    y = 2 * np.arange(height)[:, None] + 1 - height
    return (x * height) ** 2 + (y * width) ** 2 <= (width * height) ** 2


def _triangle(rng, width, height):
    """The base is one whole side of the box; the apex is anywhere on the opposite side."""
    sideways, upside_down = rng.integers(0, 2, 2)
    if sideways:
        width, height = height, width
    apex = rng.integers(0, width)
    x, depth = np.arange(width), np.arange(1, height + 1)[:, None]
    mask = ((apex - x) * height <= apex * depth) & (
        (x - apex) * height <= (width - 1 - apex) * depth
    )
    mask = mask[::-1] if upside_down else mask
    return mask.T if sideways else mask


def _cross(rng, width, height):
    """Two centred bars, each 3/12 to 5/12 of the side across."""
    bars = []
    for side in (width, height):
        bar = side * rng.integers(3, 6) // 12
        start = (side - bar) // 2
        bars.append((np.arange(side) >= start) & (np.arange(side) < start + bar))
    return bars[0] | bars[1][:, None]


_MASKS = (_rectangle, _ellipse, _triangle, _cross)  # in the order of CLASS_NAMES


def _background(rng, size):
    """int32 [size, size, 3]: interpolated random colours of a 9x9 grid, and slanted stripes."""
    knots = rng.integers(32, 224, (3, 9, 9)).astype(np.float64)
    position = np.arange(size) * 8 * 256 // size  # in 1/256 of a grid cell
    cell, fraction = position // 256, position % 256
    weights = np.zeros((size, 9))
    weights[np.arange(size), cell] = 256 - fraction
    weights[np.arange(size), cell + 1] = fraction
    # Sums of integers below 2^24 are exact in float64, in any order.
    smooth = (weights @ knots @ weights.T).astype(np.int32) >> 16  # [3, size, size]

    slant_x, slant_y = rng.integers(-4, 5, 2)
    period = rng.integers(4, 24)
    phase = np.arange(size) * slant_x + np.arange(size)[:, None] * slant_y
    stripes = phase // period % 2 * rng.integers(0, 48)
    return (smooth + stripes.astype(np.int32) - 12).transpose(1, 2, 0).copy()


def _noise(rng, shape):
    """int32 noise of mean 0 and standard deviation 8: the scaled sum of four random bytes."""
    count = int(np.prod(shape))
    total = np.frombuffer(rng.bytes(4 * count), np.uint8).reshape(4, *shape).sum(0, np.int32)
    # A sum of four has deviation 147.80 about 510, and 147.80 * 887 / 2^14 = 8.00.
    return ((total - 510) * 887 + (1 << 13)) >> 14

"""The one record format, the sources that give records, and the checks that all of them share.

**A record** is a plain dict of NumPy values:

  image: uint8 [h, w, 3] RGB.
  boxes: float32 [n, 4] xyxy, px counted from 0, inside the image.
  labels: int32 [n] in 0..C-1.
  ignore: bool [n], objects that are neither learnt nor counted (COCO crowd, VOC difficult).
  area: float32 [n] px^2, the annotated area (COCO: of the outline), else that of the box.
  index: int, position in the source.

Transforms add `placement`, float32 [4] sx, sy, tx, ty with new xy = original xy * s + t, and
`image_size`, the (height, width) of the content, which padding leaves as it is.

**A source** is anything with random access to records:

  len(source)           number of images
  source[i]             record i; decodes the image; `DataError` where that fails
  source.annotation(i)  record i without `image`; reads nothing
  source.size(i)        (height, width) of image i; decodes nothing
  source.name(i)        file path, or a name that tells a person which image it is
  source.image_id(i)    the data set's own id, int or str
  source.class_names    tuple of C names
  source.problems       sentences that say what was left out while reading the annotations
  source.dropped_boxes, source.skipped_records    how many boxes and whole images that were

EXIF orientation is ignored: annotations of detection data sets count pixels as they are stored.
"""

import pathlib
import struct
from typing import NamedTuple

import cv2
import numpy as np


class DataError(ValueError):
    """Data that cannot be used.  The message is one sentence: which file, what, and the remedy."""


# ------------------------------------------------------------------------------------------------
# Image files


def read_image(path):
    """uint8 [h, w, 3] RGB of an image file; grey is repeated, alpha dropped, 16 bits made 8.

    Raises:
      DataError: the file is missing, cannot be read, is not an image or ends too early.
    """
    data = _read_bytes(path)
    if _ends_early(data):
        raise DataError(
            f"image file {path} ends before its picture does; fetch the file again "
            "or take it off the list of images"
        )
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # for example a header that asks for more pixels than OpenCV allows
        image = None
    if image is None:
        raise DataError(
            f"image file {path} cannot be decoded; fetch the file again "
            "or take it off the list of images"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image_size(path):
    """(height, width) of an image file: from the header for JPEG and PNG, else by decoding."""
    data = _read_bytes(path)
    if data.startswith(_PNG):
        if len(data) >= 24:
            width, height = struct.unpack(">II", data[16:24])
            return height, width
    elif data.startswith(_JPEG):
        for marker, payload in _jpeg_segments(data):
            # SOF0..SOF15 hold the size; C4, C8 and CC in that range are tables.
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return struct.unpack(">HH", data[payload + 1 : payload + 5])
    return read_image(path).shape[:2]


_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"


def _read_bytes(path):
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"image file {path} does not exist; put it there or take it off the list of images"
        ) from None
    except OSError as error:
        raise DataError(
            f"image file {path} cannot be read ({error.strerror}); check its permissions"
        ) from error


def _ends_early(data):
    """Whether a JPEG or PNG lacks its end mark.  OpenCV fills what is missing with grey."""
    if data.startswith(_PNG):
        return b"IEND" not in data
    if data.startswith(_JPEG):
        # The end mark counts after the start of the scan only: thumbnails have their own.
        scan = next((start for marker, start in _jpeg_segments(data) if marker == 0xDA), None)
        return scan is None or data.find(b"\xff\xd9", scan) < 0
    return False


def _jpeg_segments(data):
    """(marker, offset of the payload) of each JPEG segment up to the first scan (ITU T.81, B.1)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:  # 9: a frame header up to its size
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield marker, at + 4
        if marker == 0xDA:
            return
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


# ------------------------------------------------------------------------------------------------
# Boxes


LEAVE_OUT = (
    "strict=False (config.data.skip_broken in training, config.data.eval_skip_broken otherwise)"
)


class Checked(NamedTuple):
    """What `check_boxes` found: m of n boxes are kept."""

    boxes: np.ndarray  # [m, 4] float32, clipped to the image
    labels: np.ndarray  # [m] int32
    keep: np.ndarray  # [n] bool
    num_clipped: int  # kept boxes that stuck out of the image
    problems: tuple[str, ...]  # one sentence for each box left out


def check_boxes(boxes, names, class_names, image_size, describe, strict=True):
    """Boxes clipped to their image, without those that cannot be used.

    Left out are boxes of an unknown class, with a coordinate that is not finite, of no area, and
    wholly outside the image.

    Args:
      boxes: [n, 4] xyxy px, counted from 0.
      names: n class names.
      class_names: the C known ones; the position is the label.
      image_size: (height, width), or [n, 2] with one row a box.
      describe: box number -> words for it, as "000005.xml, object 2 (chair)".
      strict: raise at the first unusable box instead of leaving it out.
    Raises:
      DataError: `strict` and a box cannot be used.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number.get(name, -1) for name in names], np.int32)
    height, width = np.broadcast_to(np.asarray(image_size), (len(boxes), 2)).T
    inside = np.clip(boxes, 0, np.stack([width, height, width, height], axis=1))

    faults = {
        f"is of a class that is not in class_names ({', '.join(class_names)})": labels < 0,
        "has a coordinate that is not a finite number": ~np.isfinite(boxes).all(axis=1),
        "has no area": (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),
        "lies outside the image": (inside[:, 2:] <= inside[:, :2]).any(axis=1),
    }
    bad = np.stack(list(faults.values()))  # [4, n]
    keep = ~bad.any(axis=0)
    words = list(faults)
    problems = []
    for k in np.flatnonzero(~keep):
        problems.append(f"{describe(k)} {words[np.argmax(bad[:, k])]}")
        if strict:
            raise DataError(
                f"{problems[0]}; correct it, or leave such objects out with {LEAVE_OUT}"
            )
    return Checked(
        inside[keep].astype(np.float32),
        labels[keep],
        keep,
        int((inside != boxes).any(axis=1)[keep].sum()),
        tuple(problems),
    )


class Annotations:
    """The objects of all images of a source in flat arrays; `annotations[i]` is those of one.

    Flat, because a hundred thousand small dicts are slow to copy to worker processes.
    """

    def __init__(self, image, boxes, labels, ignore, area, num_images):
        """The arrays have one row an object; `image` [n] says whose it is, in any order."""
        order = np.argsort(image, kind="stable")
        self._columns = {
            "boxes": np.asarray(boxes, np.float32).reshape(-1, 4)[order],
            "labels": np.asarray(labels, np.int32)[order],
            "ignore": np.asarray(ignore, bool)[order],
            "area": np.asarray(area, np.float32)[order],
        }
        self._start = np.searchsorted(np.asarray(image)[order], np.arange(num_images + 1))

    def __getitem__(self, i):
        rows = slice(self._start[i], self._start[i + 1])
        return {name: column[rows].copy() for name, column in self._columns.items()}


# ------------------------------------------------------------------------------------------------
# Sources


class FileSource:
    """A source whose images are files and whose annotations were read beforehand."""

    def __init__(
        self,
        class_names,
        paths,
        image_ids,
        sizes,
        annotations,
        problems=(),
        dropped_boxes=0,
        clipped_boxes=0,
        skipped_records=0,
    ):
        """`sizes` is [n, 2] height, width; `annotations` an `Annotations` of n images."""
        self.class_names = tuple(class_names)
        self.problems = tuple(problems)
        self.dropped_boxes = dropped_boxes
        self.clipped_boxes = clipped_boxes
        self.skipped_records = skipped_records
        self._paths = list(paths)
        self._image_ids = list(image_ids)
        self._sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self._annotations = annotations

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        record = self.annotation(i)
        image = read_image(self._paths[i])
        if image.shape[:2] != self.size(i):
            height, width = self.size(i)
            raise DataError(
                f"image file {self._paths[i]} is {image.shape[1]}x{image.shape[0]} px and its "
                f"annotation says {width}x{height}; correct the annotation or the image"
            )
        return {"image": image, **record}

    def annotation(self, i):
        i = range(len(self))[i]
        return {**self._annotations[i], "index": i}

    def size(self, i):
        height, width = self._sizes[i]
        return int(height), int(width)

    def name(self, i):
        return str(self._paths[i])

    def image_id(self, i):
        return self._image_ids[i]


class Filtered:
    """The images of another source at the positions `keep`, in that order."""

    def __init__(self, source, keep, reason="not asked for"):
        self._source = source
        self._keep = [int(i) for i in keep]
        left_out = len(source) - len(self._keep)
        self.class_names = source.class_names
        self.dropped_boxes = source.dropped_boxes
        self.skipped_records = source.skipped_records + left_out
        self.problems = source.problems
        if left_out:
            self.problems += (f"{left_out} of {len(source)} images are left out: {reason}",)

    def __len__(self):
        return len(self._keep)

    def __getitem__(self, i):
        i = range(len(self))[i]
        return {**self._source[self._keep[i]], "index": i}

    def annotation(self, i):
        i = range(len(self))[i]
        return {**self._source.annotation(self._keep[i]), "index": i}

    def size(self, i):
        return self._source.size(self._keep[i])

    def name(self, i):
        return self._source.name(self._keep[i])

    def image_id(self, i):
        return self._source.image_id(self._keep[i])


def for_training(source, min_side=32):
    """The images worth training on: both sides at least `min_side` px, with an object to learn.

    The rule of mmdetection's `CocoDataset._filter_imgs`; objects to ignore do not count here.
    """
    keep = [
        i
        for i in range(len(source))
        if min(source.size(i)) >= min_side and not source.annotation(i)["ignore"].all()
    ]
    return Filtered(source, keep, f"a side under {min_side} px, or no object to learn")

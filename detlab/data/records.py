"""The one record format, the sources that give records, and the checks that all of them share.

**A record** is a plain dict of NumPy values:

  image: uint8 [h, w, 3] RGB.
  boxes: float32 [n, 4] xyxy, px counted from 0, inside the image (COCO evaluation: as annotated).
  labels: int32 [n] in 0..C-1.
  ignore: bool [n], objects that are neither learnt nor counted (COCO crowd, VOC difficult).
  area: float32 [n] px^2, the annotated area (COCO: of the outline), else that of the box.
  index: int, position in the source.

A source may add `flags`, int32 [n, k] per-object flags of the data set (WIDER FACE's six).

Transforms add `placement`, float32 [4] sx, sy, tx, ty with new xy = original xy * s + t, and
`image_size`, the (height, width) of the content, which padding leaves as it is.  A mosaic and an
affine map, which are no such thing, start the placement anew at the picture that they make.

**A source** is anything with random access to records:

  len(source)           number of images
  source[i]             record i; decodes the image; `DataError` where that fails
  source.annotation(i)  record i without `image`; reads nothing
  source.size(i)        (height, width) of image i; decodes nothing
  source.name(i)        file path, or a name that tells a person which image it is
  source.image_id(i)    the data set's own id, int or str, different for each image (only
                        `wrappers.Repeated` gives one image, and so its id, several times)
  source.class_names    tuple of C names
  source.problems       sentences on what was changed or left out, the most important first
  source.dropped_boxes, source.clipped_boxes      boxes left out of images that stay, and boxes cut
  source.skipped_records, source.filtered_records     images left out as unusable, and by choice

EXIF orientation is ignored: annotations of detection data sets count pixels as they are stored.
"""

import collections
import difflib
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np


class DataError(ValueError):
    """Data that cannot be used.  The message is one sentence: which file, what, and the remedy.

    `can_leave_out` says that another remedy is to go on without this object or image, where the
    source or the loader is told to (`strict=False`, `skip_broken=True`).
    """

    def __init__(self, message, can_leave_out=False):
        super().__init__(message)
        self.can_leave_out = can_leave_out


class Faults:
    """Collects sentences on what cannot be used; with `strict` the first is raised instead."""

    def __init__(self, strict):
        self._strict = strict
        self.sentences = []

    def add(self, sentence: str) -> None:
        if self._strict:
            raise DataError(sentence, can_leave_out=True)
        self.sentences.append(sentence)


def counts(source: Any) -> dict[str, int]:
    """{name: number} of what a source lost, for the log."""
    names = ("dropped_boxes", "clipped_boxes", "skipped_records", "filtered_records")
    return {name: getattr(source, name) for name in names}


def without_objects(image) -> dict[str, Any]:
    """The record of a picture that belongs to no source: image [h, w, 3] uint8 RGB."""
    return {
        "image": image,
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int32),
        "ignore": np.zeros(0, bool),
        "area": np.zeros(0, np.float32),
        "index": 0,
    }


def select_objects(record: dict[str, Any], keep) -> dict[str, Any]:
    """The record with only the objects in keep [n], a mask or positions."""
    return {k: v[keep] if k in _PER_OBJECT else v for k, v in record.items()}


def join_objects(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first record with the objects of all records, one record after the other.

    They have the entries that all records have: `flags` only where none lacks them.
    """
    names = [name for name in _PER_OBJECT if all(name in record for record in records)]
    joined = {k: v for k, v in records[0].items() if k not in _PER_OBJECT}
    return joined | {name: np.concatenate([record[name] for record in records]) for name in names}


_PER_OBJECT = ("boxes", "labels", "ignore", "area", "flags")


def box_areas(boxes):
    """[n] px^2 of boxes [n, 4]."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


# ------------------------------------------------------------------------------------------------
# Image files


def read_image(path: str | pathlib.Path, upright: bool = False):
    """uint8 [h, w, 3] RGB of an image file; grey is repeated, alpha dropped, 16 bits made 8.

    Args:
      path: of the file.
      upright: turn the picture as its EXIF orientation says, for pictures without annotations.
    Raises:
      DataError: the file is missing, cannot be read, is not an image or ends too early.
    """
    return decode_image(_read_bytes(path), f"image file {path}", _FETCH_AGAIN, upright)


def read_image_size(path: str | pathlib.Path) -> tuple[int, int]:
    """(height, width) of an image file: from the header for JPEG and PNG, else by decoding.

    Reads the first 64 KiB, and the rest only where the header lies further in, behind a large
    thumbnail or colour profile.
    """
    height, width = _header_size(_read_bytes(path, _HEAD))
    if min(height, width) > 0:
        return height, width
    return image_size(_read_bytes(path), f"image file {path}", _FETCH_AGAIN)


_HEAD = 1 << 16  # bytes
_FETCH_AGAIN = "fetch the file again or take it off the list of images"


def decode_image(data: bytes, what: str, remedy: str, upright: bool = False):
    """`read_image` for encoded bytes: uint8 [h, w, 3] RGB.

    Args:
      data: the content of an image file.
      what: words for it, which start the message of an error.
      remedy: what to do where the bytes cannot be used, which ends it.
      upright: see `read_image`.
    """
    if _ends_early(data):
        raise DataError(f"{what} ends before its picture does; {remedy}", can_leave_out=True)
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # for example a header that asks for more pixels than OpenCV allows
        image = None
    if image is None:
        raise DataError(f"{what} cannot be decoded; {remedy}", can_leave_out=True)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(data: bytes, what: str, remedy: str) -> tuple[int, int]:
    """(height, width) of encoded bytes, from the header where it can; see `decode_image`."""
    height, width = _header_size(data)
    if min(height, width) > 0:
        return height, width
    return decode_image(data, what, remedy).shape[:2]


def _header_size(data):
    """(height, width) that the header of a JPEG or PNG gives; zeros where it gives none."""
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(_JPEG):
        for marker, payload in _jpeg_segments(data):
            # SOF0..SOF15 hold the size; C4, C8 and CC in that range are tables.
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return struct.unpack(">HH", data[payload + 1 : payload + 5])
    return 0, 0


_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"


def _read_bytes(path, count=-1):
    """The first `count` bytes of a file, or all."""
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except FileNotFoundError:
        raise DataError(
            f"image file {path} does not exist; put it there or take it off the list of images",
            can_leave_out=True,
        ) from None
    except OSError as error:
        raise DataError(
            f"image file {path} cannot be read ({error.strerror}); check its permissions",
            can_leave_out=True,
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


class Checked(NamedTuple):
    """What `check_boxes` found: m of n boxes are kept."""

    boxes: np.ndarray  # [m, 4] float32
    labels: np.ndarray  # [m] int32
    keep: np.ndarray  # [n] bool
    num_clipped: int  # kept boxes that stuck out of the image
    problems: tuple[str, ...]  # sentences, the most important first


def check_boxes(
    boxes,
    names: Sequence[str],
    class_names: Sequence[str],
    image_size,
    describe: Callable[[int], str],
    strict: bool = True,
    chosen_from: str | None = None,
    clip: bool = True,
) -> Checked:
    """Boxes clipped to their image, without those that cannot be used or are of no chosen class.

    Args:
      boxes: [n, 4] xyxy px, counted from 0, finite.
      names: n class names.
      class_names: the C classes; the position is the label.
      image_size: (height, width), or [n, 2] with one row a box.
      describe: box number -> words for it, as "000005.xml, object 2 (chair)".
      strict: raise at the first unusable box instead of leaving it out.
      chosen_from: what the n boxes were read from, in words, where `class_names` are a choice:
        boxes of other classes are then left out whether `strict` or not, with one sentence a
        class.  None where `class_names` are all there are: another class is a fault.
      clip: False keeps boxes as they are, also those of no area or outside the image.
    Raises:
      DataError: `strict` and a box cannot be used, or there are boxes and none is of a chosen
        class; strict or not, a chosen class looks like a misspelt one.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number.get(name, -1) for name in names], np.int32)
    height, width = np.broadcast_to(np.asarray(image_size), (len(boxes), 2)).T
    limits = np.stack([width, height, width, height], axis=1)
    inside = np.clip(boxes, 0, limits)

    wanted = labels >= 0
    if chosen_from is None:
        on_classes, unknown = [], ~wanted
    else:
        on_classes, unknown = _on_classes(names, class_names, chosen_from), np.zeros_like(wanted)
        if len(names) and not wanted.any() and strict:
            raise DataError(f"{on_classes[0]}; correct class_names")
    faults = {f"is of a class that is not in class_names ({', '.join(class_names)})": unknown}
    if clip:
        faults["has no area"] = wanted & (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        faults["lies outside the image"] = wanted & (inside[:, 2:] <= inside[:, :2]).any(axis=1)
    else:
        faults["has a negative side"] = wanted & (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    bad = np.stack(list(faults.values()))  # [faults, n]
    words = list(faults)
    found = Faults(strict)
    for k in np.flatnonzero(bad.any(axis=0)):
        found.add(f"{describe(k)} {words[np.argmax(bad[:, k])]}")

    keep = wanted & ~bad.any(axis=0)
    # From the given numbers: x + width carries a rounding error, which sticks out of nothing.
    beyond = (np.maximum(-boxes, boxes - limits) > _ROUNDING).any(axis=1)
    num_clipped = int(beyond[keep].sum()) if clip else 0
    problems = [*found.sentences, *on_classes] if wanted.any() else [*on_classes, *found.sentences]
    if num_clipped:
        problems.append(f"{num_clipped} boxes stick out of their images and are clipped")
    kept = inside[keep] if clip else boxes[keep]
    return Checked(kept.astype(np.float32), labels[keep], keep, num_clipped, tuple(problems))


_ROUNDING = 1e-6  # px


def _on_classes(names, class_names, chosen_from):
    """Sentences on chosen classes without objects, and on objects of classes not chosen."""
    count = collections.Counter(names)
    others = sorted(count.keys() - set(class_names))
    if count and len(others) == len(count):
        there = f"classes there are {', '.join(others)}"
        return [f"no object of class {', '.join(class_names)} in {chosen_from}; {there}"]
    absent = [name for name in class_names if name not in count]
    for name in absent:
        for meant in difflib.get_close_matches(name, others, n=1, cutoff=0.8):
            raise DataError(
                f"no object of class {name} in {chosen_from}, but {count[meant]} of class {meant}; "
                "correct class_names"
            )
    return [f"no object of class {name} in {chosen_from}" for name in absent] + [
        f"{count[name]} objects of class {name} are not in class_names and are left out"
        for name in others
    ]


class Annotations:
    """The objects of all images of a source in flat arrays; `annotations[i]` is those of one.

    Flat, because a hundred thousand small dicts are slow to copy to worker processes.
    """

    def __init__(self, image, boxes, labels, ignore, area, num_images, flags=None):
        """The arrays have one row an object; `image` [n] says whose it is, in any order.

        `flags` are those of the data set, or None where it has none.
        """
        order = np.argsort(image, kind="stable")
        self._columns = {
            "boxes": np.asarray(boxes, np.float32).reshape(-1, 4)[order],
            "labels": np.asarray(labels, np.int32)[order],
            "ignore": np.asarray(ignore, bool)[order],
            "area": np.asarray(area, np.float32)[order],
        }
        if flags is not None:
            self._columns["flags"] = np.asarray(flags, np.int32)[order]
        self._start = np.searchsorted(np.asarray(image)[order], np.arange(num_images + 1))

    def __getitem__(self, i):
        rows = slice(self._start[i], self._start[i + 1])
        return {name: column[rows].copy() for name, column in self._columns.items()}


# ------------------------------------------------------------------------------------------------
# Sources of image files


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
        self.filtered_records = 0
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
                f"annotation says {width}x{height}; correct the annotation or the image",
                can_leave_out=True,
            )
        return {"image": image, **record}

    def annotation(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {**self._annotations[i], "index": i}

    def size(self, i: int) -> tuple[int, int]:
        height, width = self._sizes[i]
        return int(height), int(width)

    def name(self, i: int) -> str:
        return str(self._paths[i])

    def image_id(self, i: int) -> int | str:
        return self._image_ids[i]

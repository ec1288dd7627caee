"""The record format, the interface of sources, and the checks that all sources share.

**A record** is a plain dict of NumPy values:

  image: uint8 [h, w, 3] RGB.
  boxes: float32 [n, 4] xyxy, px counted from 0, inside the image (COCO evaluation: as annotated).
  labels: int32 [n] in 0..C-1.
  ignore: bool [n], objects that are neither learned nor counted (COCO crowd, VOC difficult).
  area: float32 [n] px^2, the annotated area (COCO: of the outline), else that of the box.
  index: int, position in the source.

A source may add `flags`, int32 [n, k] per-object flags of the data set (WIDER FACE's six).

Transforms add `placement`, float32 [4] sx, sy, tx, ty with new xy = original xy * s + t, and
`image_size`, the (height, width) of the content, which padding does not change.  A mosaic or an
affine map is not a scale and shift, so it resets `placement` to the identity.

**A source** is anything with random access to records:

  len(source)           number of images
  source[i]             record i; decodes the image and raises `DataError` if that fails
  source.annotation(i)  record i without `image`; reads no file
  source.size(i)        (height, width) of image i; decodes nothing
  source.name(i)        file path, or a name that identifies the image to a person
  source.path(i)        the file of image i; None if it has no file of its own
  source.image_id(i)    the data set's id, int or str, unique for each image (only
                        `wrappers.Repeated` has an image, and so its id, several times)
  source.class_names    tuple of C names
  source.max_objects    no image has more objects
  source.problems       sentences on what was changed or dropped, the most important first
  source.dropped_boxes, source.clipped_boxes      boxes dropped from kept images, boxes clipped
  source.skipped_records, source.filtered_records     unusable images, images dropped by choice

A picture that its camera stored turned is read upright or as stored, see `decode_image`.
"""

import collections
import concurrent.futures
import difflib
import mmap
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from detlab import text as text_lib
from detlab.data import headers


class DataError(ValueError):
    """Unusable data.  The message is one sentence: the file, the fault and the remedy.

    `can_leave_out` is True if the source or the loader can also skip this object or image
    (`strict=False`, `skip_broken=True`).
    """

    def __init__(self, message, can_leave_out=False):
        super().__init__(message)
        self.can_leave_out = can_leave_out


class Faults:
    """Collects sentences on unusable data; with `strict`, raises the first one instead."""

    def __init__(self, strict):
        self._strict = strict
        self.sentences = []

    def add(self, sentence: str) -> None:
        if self._strict:
            raise DataError(sentence, can_leave_out=True)
        self.sentences.append(sentence)

    def told(self, what: str) -> list[str]:
        """The first sentences, and the number of further `what`, such as "images"."""
        more = len(self.sentences) - _TOLD
        if more <= 1:
            return self.sentences
        return [*self.sentences[:_TOLD], f"{more} more {what} are unusable"]


_TOLD = 3


def counts(source: Any) -> dict[str, int]:
    """{name: number} of dropped, clipped, skipped and filtered items of a source, for the log."""
    names = ("dropped_boxes", "clipped_boxes", "skipped_records", "filtered_records")
    return {name: getattr(source, name) for name in names}


def without_objects(image) -> dict[str, Any]:
    """The record without objects of an image [h, w, 3] uint8 RGB that belongs to no source."""
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
    """The first record with the objects of all records, in order.

    Only the entries that all records have are joined: `flags` are dropped if any record lacks them.
    """
    names = [name for name in _PER_OBJECT if all(name in record for record in records)]
    joined = {k: v for k, v in records[0].items() if k not in _PER_OBJECT}
    return joined | {name: np.concatenate([record[name] for record in records]) for name in names}


_PER_OBJECT = ("boxes", "labels", "ignore", "area", "flags")


def box_areas(boxes):
    """Areas [n] px^2 of boxes [n, 4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# ------------------------------------------------------------------------------------------------
# Image files


def read_image(path: str | pathlib.Path, exif: str = "auto", size: tuple[int, int] | None = None):
    """Reads an image file as uint8 [h, w, 3] RGB: repeats grey, drops alpha, reduces 16 bits to 8.

    Args:
      path: the file.
      exif, size: see `decode_image`.
    Raises:
      DataError: the file is missing, cannot be read, is not an image or is truncated.
    """
    return decode_image(_read_bytes(path), f"image file {path}", _FETCH_AGAIN, exif, size)


def read_image_size(path: str | pathlib.Path, exif: str = "auto") -> tuple[int, int]:
    """(height, width) that `read_image` gives: from the header for JPEG and PNG, else by decoding.

    Reads the first 64 KiB, and the rest only if the size is not there: in other formats, or behind
    a large thumbnail or colour profile.
    """
    head = _read_bytes(path, _HEAD)
    stored = headers.size(head)
    if min(stored) == 0:
        return image_size(_read_bytes(path), f"image file {path}", _FETCH_AGAIN, exif)
    # A PNG may have its orientation behind its pixels.
    behind = len(head) == _HEAD and head.startswith(headers.PNG)
    orientation = _orientation_of(path) if behind else headers.orientation(head)
    return _size_as_read(stored, orientation, exif)


_HEAD = 1 << 16  # bytes
_FETCH_AGAIN = "download the file again or remove it from the list of images"


def decode_image(
    data: bytes,
    what: str,
    remedy: str,
    exif: str = "auto",
    size: tuple[int, int] | None = None,
):
    """`read_image` for encoded bytes: uint8 [h, w, 3] RGB.

    Args:
      data: the content of an image file.
      what: names the data at the start of an error message.
      remedy: says at the end of an error message what to do about unusable data.
      exif: "upright" turns the picture as its EXIF orientation says, "stored" does not, and "auto"
        turns it unless `size` is the stored size and not that of the turned picture.
      size: (height, width) px in which the boxes were annotated; None if unknown.
    """
    if headers.ends_early(data):
        raise DataError(f"{what} is truncated; {remedy}", can_leave_out=True)
    # Reading as RGB saves a pass over the image.
    as_rgb = _COLOR_RGB is not None and data.startswith(headers.JPEG)
    flags = _COLOR_RGB if as_rgb else cv2.IMREAD_COLOR
    image, error = None, ""
    try:
        if data:
            flags |= cv2.IMREAD_IGNORE_ORIENTATION
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as raised:  # for example a header that asks for more pixels than OpenCV allows
        error = str(raised)
    if image is None:
        fault, own_remedy = headers.fault(data, error)
        raise DataError(
            f"{what} cannot be decoded{fault}; {own_remedy or remedy}", can_leave_out=True
        )
    if not as_rgb:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    orientation = headers.orientation(data)
    if orientation == 1:
        return image
    if headers.is_tiff(data):  # OpenCV turns these, whatever the flags say
        if _is_turned(orientation, _swapped(image.shape, orientation), size, exif):
            return image
        return turn(image, {6: 8, 8: 6}.get(orientation, orientation))
    return turn(image, orientation) if _is_turned(orientation, image.shape, size, exif) else image


_COLOR_RGB = getattr(cv2, "IMREAD_COLOR_RGB", None)  # since OpenCV 4.11

EXIF = ("auto", "upright", "stored")  # see `decode_image`


def turn(image, orientation: int):
    """The stored image [h, w, 3] as its EXIF orientation, 1..8, says to show it."""
    if orientation >= 5:
        image = cv2.transpose(image)
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)  # 1: left to right, -1: both
    return image if axis is None else cv2.flip(image, axis)


def _is_turned(orientation, stored, size, exif):
    """Whether `decode_image` turns a picture of this stored (height, width)."""
    if exif != "auto" or orientation == 1:
        return exif != "stored" and orientation != 1
    stored = tuple(stored[:2])
    return not (size == stored and size != _swapped(stored, orientation))


def _swapped(size, orientation):
    """(height, width) of a picture once turned; also of a turned one as it is stored."""
    return (size[1], size[0]) if orientation >= 5 else (size[0], size[1])


def image_size(data: bytes, what: str, remedy: str, exif: str = "auto") -> tuple[int, int]:
    """(height, width) of encoded bytes, from the header if possible; see `decode_image`."""
    stored = headers.size(data)
    if min(stored) == 0:
        return decode_image(data, what, remedy, exif).shape[:2]
    return _size_as_read(stored, headers.orientation(data), exif)


def _size_as_read(stored, orientation, exif):
    return _swapped(stored, orientation) if _is_turned(orientation, stored, None, exif) else stored


def _read_bytes(path, count=-1):
    """The first `count` bytes of a file, or all."""
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except FileNotFoundError:
        raise DataError(
            f"image file {path} does not exist; put it there or remove it from the list of images",
            can_leave_out=True,
        ) from None
    except OSError as error:
        denied = isinstance(error, PermissionError)
        remedy = "check its permissions" if denied else "put an image there or correct its name"
        raise DataError(
            f"image file {path} cannot be read ({error.strerror}); {remedy}", can_leave_out=True
        ) from error
    except ValueError as error:  # zero characters, or half of a pair of UTF-16
        raise DataError(
            f"image file {str(path)!r} has a name that no file can have; correct it in the list of "
            "images",
            can_leave_out=True,
        ) from error


# ------------------------------------------------------------------------------------------------
# Turned pictures


def _orientations(paths):
    """EXIF orientation [n] of image files, read from their headers; 1 for what cannot be read."""
    start = time.monotonic()
    found = [_orientation_of(path) for path in paths[:_SAMPLE]]
    if time.monotonic() - start < 1e-3 * _SAMPLE:
        found += [_orientation_of(path) for path in paths[_SAMPLE:]]  # 20 us each
    else:  # a slow disk or network: threads wait together
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found += pool.map(_orientation_of, paths[_SAMPLE:])
    return np.array(found, np.int64)


_SAMPLE = 200  # files that show how fast they can be read


def _orientation_of(path):
    try:
        with open(str(path), "rb", buffering=0) as stream:
            # Mapped, so that only the pages with the headers are read.
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return headers.orientation(data)
    except (OSError, ValueError):  # ValueError: an empty file; reading it as an image says so
        return 1


def _how_turned(paths, sizes, sized):
    """A sentence on the images with an EXIF orientation and how "auto" reads them; "" if none has.

    Args:
      paths: of n images.
      sizes: [n, 2] height, width of the images as they are read.
      sized: [n] bool, whether that is an annotated size.
    """
    orientations = _orientations(paths)
    with_tag = np.flatnonzero(orientations != 1).tolist()
    told, untold, stored = [], [], []
    for i in with_tag:
        size, orientation = tuple(sizes[i].tolist()), orientations[i]
        decides = sized[i] and orientation >= 5 and size[0] != size[1]
        if not decides:
            untold.append(i)
        else:
            try:
                as_stored = read_image_size(paths[i], "stored") == size
            except DataError:
                continue  # told when the image is read
            (stored if as_stored else told).append(i)
    words = {
        f"turned upright, as annotated sizes say{_first(paths, told)}": told,
        "turned upright, as OpenCV does, since no annotated size tells"
        f"{_first(paths, untold)}": untold,
        f"left as stored, as annotated sizes say{_first(paths, stored)}": stored,
    }
    parts = [f"{len(which)} {text}" for text, which in words.items() if which]
    if not parts:
        return ""
    return (
        f"{len(with_tag)} of {len(paths)} images have an EXIF orientation: {', '.join(parts)}; "
        "config.data.exif=upright or stored decides for all"
    )


def _first(paths, which):
    return f" (the first: {paths[which[0]]})" if which else ""


# ------------------------------------------------------------------------------------------------
# Boxes


class Checked(NamedTuple):
    """The result of `check_boxes`: m of n boxes are kept."""

    boxes: np.ndarray  # [m, 4] float32
    labels: np.ndarray  # [m] int32
    keep: np.ndarray  # [n] bool
    num_clipped: int  # kept boxes that reached beyond the image
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
    known: Sequence[str] | None = None,
) -> Checked:
    """Clips boxes to their image and drops those that are unusable or not of a chosen class.

    Args:
      boxes: [n, 4] xyxy px, counted from 0, finite.
      names: the class name of each box.
      class_names: the C classes; the position is the label.
      image_size: (height, width), or [n, 2] with one row per box.
      describe: box number -> words that name it, such as "000005.xml, object 2 (chair)".
      strict: raise at the first unusable box instead of dropping it.
      chosen_from: where the boxes were read from, in words, if `class_names` is a choice: boxes of
        other classes are then dropped, `strict` or not, with one sentence per class.  None if
        `class_names` is complete: another class is then a fault.
      clip: False keeps boxes as they are, even without area or outside the image.
      known: the classes that the data set declares; a chosen class among them is not misspelt, and
        the caller tells of the others.  None if it declares none.
    Raises:
      DataError: with `strict`, a box is unusable, or there are boxes but none of a chosen class;
        strict or not, a chosen class looks misspelt.
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
        on_classes = _on_classes(names, class_names, chosen_from, known)
        unknown = np.zeros_like(wanted)
        if len(names) and not wanted.any() and strict:
            raise DataError(f"{on_classes[0]}; correct class_names")
    faults = {f"has a class that is not in class_names ({', '.join(class_names)})": unknown}
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
    # The rounding error of x + width does not count as reaching beyond the image.
    beyond = (np.maximum(-boxes, boxes - limits) > _ROUNDING).any(axis=1)
    num_clipped = int(beyond[keep].sum()) if clip else 0
    told = found.told("objects")
    problems = [*told, *on_classes] if wanted.any() else [*on_classes, *told]
    if num_clipped:
        problems.append(f"boxes that reach beyond their image are clipped: {num_clipped}")
    kept = inside[keep] if clip else boxes[keep]
    return Checked(kept.astype(np.float32), labels[keep], keep, num_clipped, tuple(problems))


_ROUNDING = 1e-6  # px


def _on_classes(names, class_names, chosen_from, known):
    """Sentences on chosen classes without objects, and on objects of classes not chosen."""
    count = collections.Counter(names)
    others = {name: count[name] for name in sorted(count.keys() - set(class_names))}
    if count and len(others) == len(count):
        there = f"the classes found are {', '.join(others)}"
        return [f"there are no objects of class {', '.join(class_names)} in {chosen_from}; {there}"]
    absent = [name for name in class_names if name not in count]
    if known is not None:
        absent = [name for name in absent if name in known]
    for name in absent if known is None else ():
        meant = meant_class(name, others)
        if meant:
            raise DataError(
                f"there are no objects of class {name} in {chosen_from}, but {count[meant]} of "
                f"class {meant}; correct class_names"
            )
    return [
        *(f"there are no objects of class {name} in {chosen_from}" for name in absent),
        *dropped_classes(others),
    ]


def dropped_classes(count: dict[str, int]) -> list[str]:
    """Sentences on objects that are dropped because their class is not in `class_names`.

    Args:
      count: {class: number of its objects}.
    """
    if len(count) <= _TOLD:
        return [
            f"objects of class {name}, which is not in class_names, are dropped: {number}"
            for name, number in count.items()
        ]
    most = sorted(count, key=lambda name: (-count[name], name))[:_TOLD]
    parts = ", ".join(f"{count[name]} {name}" for name in most)
    rest = sum(count.values()) - sum(count[name] for name in most)
    return [
        f"objects of {len(count)} classes that are not in class_names are dropped: {parts} and "
        f"{rest} of the other {len(count) - len(most)}"
    ]


def lacking_classes(where: str, lacking: Sequence[str], known: Sequence[str]) -> list[str]:
    """A sentence on chosen classes that data do not have; none if they have all.

    Args:
      where: the data, the subject of the sentence.
      lacking: the chosen classes that are not there.
      known: the classes that are.
    """
    if not lacking:
        return []
    count = "it counts as a class" if len(lacking) == 1 else "they count as classes"
    return [
        f"{where} has no class {text_lib.listed(lacking)} (its classes: {text_lib.listed(known)});"
        f" {count} without objects"
    ]


def meant_class(name: str, others: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The class among `others` that `name` seems to misspell; None if there is none.

    Case does not count.  Names that differ only in digits, such as "class_10" and "class_11", are
    different classes.

    Args:
      cutoff: 0..1, the least similarity, as in `difflib.get_close_matches`.
    """
    folded = {other.casefold(): other for other in others}
    name = name.casefold()
    for close in difflib.get_close_matches(name, folded, n=3, cutoff=cutoff):
        if close == name or _letters(close) != _letters(name):
            return folded[close]
    return None


def _letters(name):
    return "".join(letter for letter in name if not letter.isdigit())


class Annotations:
    """The objects of all images of a source in flat arrays; `annotations[i]` has those of image i.

    The arrays are flat because a hundred thousand small dicts are slow to copy to worker processes.
    """

    def __init__(self, image, boxes, labels, ignore, area, num_images, flags=None):
        """The arrays have one row per object; `image` [n] gives its image, in any order.

        `flags` is None if the data set has none.
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
        self.num_objects = len(order)
        self.max_objects = int(np.diff(self._start).max(initial=0))

    def __getitem__(self, i):
        rows = slice(self._start[i], self._start[i + 1])
        return {name: column[rows].copy() for name, column in self._columns.items()}


# ------------------------------------------------------------------------------------------------
# Sources of image files


class FileSource:
    """A source of image files whose annotations were read beforehand."""

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
        exif="auto",
        sized=True,
    ):
        """Joins the columns of a source.

        Args:
          sizes: [n, 2] height, width.
          annotations: an `Annotations` of n images.
          exif: see `decode_image`.
          sized: whether `sizes` are annotated, one bool or [n]; False: read from the images.
        """
        self.class_names = tuple(class_names)
        self.dropped_boxes = dropped_boxes
        self.clipped_boxes = clipped_boxes
        self.skipped_records = skipped_records
        self.filtered_records = 0
        self._paths = list(paths)
        self._image_ids = list(image_ids)
        self._sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self._annotations = annotations
        self._exif = exif
        sized = np.broadcast_to(np.asarray(sized, bool), len(self._paths))
        turned = _how_turned(self._paths, self._sizes, sized) if exif == "auto" else ""
        first, last = ([turned], []) if annotations.num_objects else ([], [turned])
        # Without objects, the first problem must be their loss, the cause of any later failure.
        self.problems = tuple(filter(None, (*first, *problems, *last)))
        self.max_objects = annotations.max_objects

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        record = self.annotation(i)
        path, size = self._paths[i], self.size(i)
        image = read_image(path, self._exif, size)
        if image.shape[:2] != size:
            raise DataError(_other_size(path, image.shape[:2], size, self._exif), True)
        return {"image": image, **record}

    def annotation(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {**self._annotations[i], "index": i}

    def size(self, i: int) -> tuple[int, int]:
        height, width = self._sizes[i]
        return int(height), int(width)

    def name(self, i: int) -> str:
        return str(self._paths[i])

    def path(self, i: int) -> str | None:
        return str(self._paths[i])

    def image_id(self, i: int) -> int | str:
        return self._image_ids[i]


def _other_size(path, found, annotated, exif):
    """The sentence on an image whose (height, width) is not the annotated one."""
    orientation = _orientation_of(path)
    how = ""
    if orientation != 1:
        way = "as stored, without" if exif == "stored" else "turned upright by"
        how = f" ({way} its EXIF orientation {orientation})"
    remedy = "correct one of them"
    if orientation >= 5 and exif != "auto" and found == annotated[::-1]:
        remedy = "set config.data.exif=auto, with which the annotated size decides"
    return (
        f"image file {path} is {found[1]}x{found[0]} px{how}, but its annotation says "
        f"{annotated[1]}x{annotated[0]}; {remedy}"
    )

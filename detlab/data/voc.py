"""PASCAL VOC annotations: the 2007 and 2012 data sets, and other data in their layout.

Files (devkit documentation, section 8): `ImageSets/Main/<split>.txt` lists names, and each name has
`Annotations/<name>.xml` and `JPEGImages/<name>.jpg` (or another format; a name may hold folders).
Boxes count pixels from 1 and include both ends.  Like mmdetection's `XMLDataset`, this reader
subtracts 1 from all four numbers, which excludes the last row and column of a box.  Objects marked
`difficult` become `ignore`.
"""

import pathlib
import re
from xml.etree import ElementTree

import numpy as np

from detlab.data import records as records_lib

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


# Image formats, in the order in which they are tried.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Voc(records_lib.FileSource):
    """The images of one or several splits, one after another.

    The id of an image is its name in the split, `000005`.  If the splits are from several folders,
    which may share names, it is `VOC2007/000005`.

    Args:
      root: the folder that holds `VOC2007` and `VOC2012`, or one that itself holds `Annotations`,
        `ImageSets` and `JPEGImages`.
      splits: "2007_trainval" is VOC2007/ImageSets/Main/trainval.txt, and "trainval" is
        ImageSets/Main/trainval.txt of a root of the second kind.
      class_names: the classes to use, in label order; objects of other classes are dropped.  None
        uses the 20 of PASCAL VOC; an object of another class is then unusable.
      strict: raise at the first unusable image or object; False skips it and reports it in
        `problems`.
    Raises:
      DataError: a folder or split is missing, or a split is empty; with `strict`, also if an image
        is listed twice, an annotation file is missing or malformed, an object is unusable, or there
        are objects but none of `class_names`.
    """

    def __init__(
        self,
        root,
        splits=("2007_trainval", "2012_trainval"),
        class_names=None,
        strict=True,
    ):
        root = pathlib.Path(root)
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        bad_images, bad_objects = records_lib.Faults(strict), records_lib.Faults(strict)
        listed = _listed(root, splits, bad_images)
        several = len({folder for folder, _ in listed}) > 1
        paths, image_ids, sizes, contents = [], [], [], {}
        image, boxes, names, difficult, places = [], [], [], [], []
        for folder, name in listed:
            file = folder / "Annotations" / f"{name}.xml"
            try:
                annotation = _parse(file)
                path = _image_path(folder, name, annotation, contents)
                size = _size(annotation, file, path)
            except records_lib.DataError as error:
                bad_images.add(str(error))
                continue
            for number, element in enumerate(annotation.findall("object"), start=1):
                try:
                    class_name, box, hard = _read_object(element)
                except ValueError as error:
                    bad_objects.add(f"{file}, object {number} {error}")
                    continue
                image.append(len(paths))
                boxes.append(box)
                names.append(class_name)
                difficult.append(hard)
                places.append((file, number))
            paths.append(str(path))
            image_ids.append(f"{folder.name}/{name}" if several else name)
            sizes.append(size)

        def describe(k):
            file, number = places[k]
            corners = " ".join(f"{value + 1:g}" for value in boxes[k])
            return f"{file}, object {number} ({names[k]}, xmin ymin xmax ymax {corners})"

        image = np.array(image, np.int64)
        checked = records_lib.check_boxes(
            boxes,
            names,
            class_names or CLASS_NAMES,
            np.array(sizes, np.int64).reshape(-1, 2)[image],
            describe,
            strict,
            chosen_from=f"{', '.join(splits)} of {root}" if class_names else None,
        )
        annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=np.array(difficult, bool)[checked.keep],
            area=np.prod(checked.boxes[:, 2:] - checked.boxes[:, :2], axis=1),
            num_images=len(paths),
        )
        super().__init__(
            class_names or CLASS_NAMES,
            paths,
            image_ids,
            sizes,
            annotations,
            problems=(
                *bad_images.told("images"),
                *bad_objects.told("objects"),
                *checked.problems,
            ),
            dropped_boxes=len(bad_objects.sentences) + int((~checked.keep).sum()),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(bad_images.sentences),
        )


def _listed(root, splits, faults):
    """(folder, name) of each image that the splits list; repeats are faults."""
    if not root.is_dir():
        raise records_lib.DataError(
            f"data folder {root} does not exist; give the folder that holds VOC2007 and VOC2012, "
            "or Annotations, ImageSets and JPEGImages"
        )
    if not splits:
        raise records_lib.DataError(
            f"no split is given; splits under {root}: {', '.join(_splits_under(root)) or 'none'}"
        )
    listed = {}  # (folder, name) -> the split file, in listed order
    for split in splits:
        year = re.match(r"(\d{4})_", split)
        folder = root / f"VOC{year[1]}" if year else root
        file = folder / "ImageSets" / "Main" / f"{split[5:] if year else split}.txt"
        if not file.is_file():
            raise records_lib.DataError(
                f"split {split!r} needs the file {file}, which does not exist; "
                f"splits under {root}: {', '.join(_splits_under(root)) or 'none'}"
            )
        names = _names(folder, file)
        if not names:
            raise records_lib.DataError(
                f"split file {file} lists no images; write one image name per line"
            )
        for name in names:
            if (folder, name) in listed:
                first = listed[folder, name]
                again = "twice" if first == file else f"again after {first}"
                faults.add(f"split file {file} lists image {name!r} {again}")
            else:
                listed[folder, name] = file
    return list(listed)


def _names(folder, file):
    """The names in a split file, without the extra column of splits for a single class."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise records_lib.DataError(
            f"split file {file} cannot be read as text ({error}); write one image name per line"
        ) from error
    names = []
    for line in filter(None, map(str.strip, lines)):
        column = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
        # `scan 1` may also be a whole name: then it has an annotation file.
        if column and not (folder / "Annotations" / f"{line}.xml").is_file():
            line = column[1]
        names.append(line)
    return names


def _splits_under(root):
    found = [path.stem for path in root.glob("ImageSets/Main/*.txt")]
    for path in root.glob("VOC????/ImageSets/Main/*.txt"):
        if "_" not in path.stem:  # cat_trainval.txt and the like list the images of one class
            found.append(f"{path.parts[-4][3:]}_{path.stem}")
    return sorted(found)


# ------------------------------------------------------------------------------------------------
# One annotation file


def _parse(file):
    """The root element of an XML file."""
    try:
        return ElementTree.parse(file).getroot()
    except FileNotFoundError:
        fault = "does not exist"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: bad encoding
        fault = f"is not well-formed XML ({error})"
    raise records_lib.DataError(f"annotation file {file} {fault}")


def _image_path(folder, name, annotation, contents):
    """The image file of a name: with the suffix in <filename>, else with any other known suffix.

    Args:
      contents: {folder: its files}, filled here so that each folder is listed only once.
    """
    suffix = pathlib.PurePath(annotation.findtext("filename", "").strip()).suffix or ".jpg"
    path = folder / "JPEGImages" / f"{name}{suffix}"
    if path.is_file():
        return path
    if path.parent not in contents:
        files = path.parent.iterdir() if path.parent.is_dir() else ()
        contents[path.parent] = {f"{other.stem}{other.suffix.lower()}": other for other in files}
    stem = pathlib.PurePath(name).name
    candidates = (contents[path.parent].get(stem + end) for end in (suffix.lower(), *_SUFFIXES))
    return next(filter(None, candidates), path)


def _size(annotation, file, path):
    """(height, width) px from the annotation or, if it has none, from the image file."""
    size = []
    for side in ("height", "width"):
        text = annotation.findtext(f"size/{side}", "").strip() or "0"
        value = _number(text)
        if value is None:
            raise records_lib.DataError(
                f"annotation file {file} has the {side} {text!r}, which is not a number of pixels"
            )
        size.append(int(value))
    return tuple(size) if min(size) > 0 else records_lib.read_image_size(path)


def _read_object(element):
    """(class name, [x1, y1, x2, y2] px from 0, difficult) of an <object>.

    Raises ValueError that says what is missing or malformed.
    """
    name = element.findtext("name", "").strip()
    if not name:
        raise ValueError("has no name")
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{side}")
        if text is None:
            raise ValueError(f"({name}) has no bndbox/{side}")
        value = _number(text)
        if value is None:
            raise ValueError(f"({name}) has the {side} {text!r}, which is not a number of pixels")
        box.append(value - 1)
    difficult = element.findtext("difficult", "").strip() or "0"
    if difficult not in ("0", "1"):
        raise ValueError(f"({name}) has the difficult flag {difficult!r}, which is neither 0 nor 1")
    return name, box, difficult == "1"


def _number(text):
    """The number in a text; None if there is none, or if it is too large for a pixel coordinate."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 2**31 else None  # False for NaN

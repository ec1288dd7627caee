"""PASCAL VOC annotations: the 2007 and 2012 data sets, and other data in their layout.

Files (devkit documentation, section 8): `ImageSets/Main/<split>.txt` lists names, and each name has
`Annotations/<name>.xml` and `JPEGImages/<name>.jpg` (or another format; a name may hold folders).
Boxes count pixels from 1 and include both ends.  Like mmdetection's `XMLDataset`, this reader
subtracts 1 from all four numbers, which excludes the last row and column of a box.  Objects marked
`difficult` become `ignore`.
"""

import collections
import os
import pathlib
import re
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detlab import text as text_lib
from detlab.data import headers
from detlab.data import names as names_lib
from detlab.data import records as records_lib

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


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
      exif: see `records.decode_image`.
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
        exif="auto",
    ):
        root = pathlib.Path(root)
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        class_names = tuple(map(names_lib.normal, class_names or ()))
        bad_images, bad_objects = records_lib.Faults(strict), records_lib.Faults(strict)
        listed, notes = _listed(root, splits, bad_images)
        several = len({entry.folder for entry in listed}) > 1
        folders = {}  # folder of images -> its `names.Files`
        paths, image_ids, sizes, sized = [], [], [], []
        image, boxes, names, difficult, places = [], [], [], [], []
        for folder, name, file in listed:
            try:
                annotation = _parse(file)
                path = _image_path(folder, name, annotation, folders)
                size, annotated = _size(annotation, file, path, exif)
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
            sized.append(annotated)
        for folder, files in folders.items():
            notes += files.problems(folder / "Annotations")

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
                *notes,
            ),
            dropped_boxes=len(bad_objects.sentences) + int((~checked.keep).sum()),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(bad_images.sentences),
            exif=exif,
            sized=sized,
        )


class _Listed(NamedTuple):
    """An image that a split lists."""

    folder: pathlib.Path  # that holds Annotations and JPEGImages
    name: str
    annotation: pathlib.Path  # file


def _listed(root, splits, faults):
    """([_Listed] of the splits, sentences on how they were read); repeats are faults."""
    if not root.is_dir():
        raise records_lib.DataError(
            f"data folder {root} does not exist; give the folder that holds VOC2007 and VOC2012, "
            "or Annotations, ImageSets and JPEGImages"
        )
    if not splits:
        raise records_lib.DataError(
            f"no split is given; splits under {root}: {', '.join(_splits_under(root)) or 'none'}"
        )
    listed, annotations, notes = {}, {}, []  # (folder, name) -> (_Listed, split file)
    for split in splits:
        year = re.match(r"(\d{4})_", split)
        folder = root / f"VOC{year[1]}" if year else root
        file = folder / "ImageSets" / "Main" / f"{split[5:] if year else split}.txt"
        if not file.is_file():
            raise records_lib.DataError(
                f"split {split!r} needs the file {file}, which does not exist; "
                f"splits under {root}: {', '.join(_splits_under(root)) or 'none'}"
            )
        if folder not in annotations:
            annotations[folder] = names_lib.Files(folder / "Annotations")
        entries, columns = _entries(folder, file, annotations[folder])
        if not entries:
            raise records_lib.DataError(
                f"split file {file} lists no images; write one image name per line"
            )
        if columns:
            notes.append(_about_columns(file, columns, len(entries)))
        for entry in entries:
            key = (folder, entry.name)
            if key in listed:
                first = listed[key][1]
                again = "twice" if first == file else f"again after {first}"
                faults.add(f"split file {file} lists image {entry.name!r} {again}")
            else:
                listed[key] = (entry, file)
    for folder, files in annotations.items():
        notes += files.problems(f"the splits of {folder}")
    return [entry for entry, _ in listed.values()], notes


def _entries(folder, file, annotations):
    """([_Listed] of a split file, Counter of the extra column of splits for a single class).

    Args:
      annotations: `names.Files` of the folder of annotations.
    """
    try:
        lines = names_lib.read_lines(file, lambda line: _found(line, annotations) is not None)
    except OSError as error:
        raise records_lib.DataError(
            f"split file {file} cannot be read ({error.strerror}); check its permissions"
        ) from error
    except ValueError as error:
        raise records_lib.DataError(f"split file {file} {error}") from error
    entries, columns = [], collections.Counter()
    for line in filter(None, lines):
        name, path, column = _found(line, annotations) or (None, None, None)
        if name is None:
            if line.startswith("#"):
                continue  # a comment
            name, column = _without_column(_without_comment(line))
            name = names_lib.without_suffix(pathlib.PureWindowsPath(name).as_posix())
            path = folder / "Annotations" / f"{name}.xml"
        elif path != annotations.exact(f"{name}.xml") or not line.removeprefix("./").startswith(
            name
        ):
            annotations.respelled[line] = path
        if column is not None:
            columns[column] += 1
        entries.append(_Listed(folder, name, pathlib.Path(path)))
    return entries, columns


def _found(line, annotations):
    """(name, annotation file, column or None) of the image that a line names; None if none is.

    The line is a name, or names the file of the image or of the annotation, in this folder or
    where it once was.  A comment or the column of a split for a single class may follow.
    """
    line = line.removeprefix("./")
    # `scan 1` and `scan #1` may be whole names: then they have an annotation file.
    readings = ((line, None), _without_column(line), _without_column(_without_comment(line)))
    readings = dict.fromkeys(readings)
    for text, column in readings:
        path = annotations.exact(f"{text}.xml")
        if path and not os.path.isabs(text):
            return text, path, column
    for text, column in readings:
        for spelling in names_lib.spellings(text.strip("'\"")):
            stems = dict.fromkeys((spelling, names_lib.without_suffix(spelling)))
            path = annotations.find(*(f"{stem}.xml" for stem in stems))
            if path:
                name = pathlib.Path(path).relative_to(annotations.folder).with_suffix("")
                return names_lib.normal(name.as_posix()), path, column
    return None


def _without_column(line):
    """(name, column) of a line `name -1`; the column is None if there is none."""
    column = re.fullmatch(r"(.*\S)\s+(-1|\+?1|0)", line)
    return (column[1], int(column[2])) if column else (line, None)


def _without_comment(line):
    return re.split(r"\s#", line)[0].strip()


def _about_columns(file, columns, count):
    marked = ", ".join(f"{columns[c]} with {c}" for c in (1, 0, -1) if columns[c])
    return (
        f"split file {file} marks images as with or without one class ({marked}); all {count} "
        "images are used"
    )


def _splits_under(root):
    found = [path.stem for path in root.glob("ImageSets/Main/*.txt")]
    for path in root.glob("VOC????/ImageSets/Main/*.txt"):
        if "_" not in path.stem:  # cat_trainval.txt and the like list the images of one class
            found.append(f"{path.parts[-4][3:]}_{path.stem}")
    return sorted(found)


# ------------------------------------------------------------------------------------------------
# One annotation file


def _parse(file):
    """The root element of an XML file, without namespaces.

    Any root with objects will do; another one than <annotation> without objects is another format.
    """
    try:
        root = ElementTree.fromstring(_xml_text(file.read_bytes()))
        if "}" in root.tag:
            for element in root.iter():
                element.tag = element.tag.rpartition("}")[2]
        if root.tag == "annotation" or root.find("object") is not None:
            return root
        fault = f"is no PASCAL VOC annotation (its root is <{root.tag}>); convert it"
    except FileNotFoundError:
        fault = "does not exist"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except ElementTree.ParseError as error:
        fault = f"is not well-formed XML ({error})"
    except ValueError as error:  # no text
        fault = str(error)
    raise records_lib.DataError(f"annotation file {file} {fault}")


def _xml_text(data):
    """The text of an XML file without its declaration.

    The declared encoding is tried first, by Python's codecs, because expat has none of several
    bytes per character.  Declarations often survive a change of the encoding, so UTF-8 is next.
    Bytes that are neither become U+FFFD, which matters only in the name of a class: paths of the
    machine where the file was written are not read.

    Raises:
      ValueError: the file is no text, or declares an unknown encoding.
    """
    declared = re.match(rb"[^<]{0,8}<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)", data)
    encoding = declared[1].decode("ascii").lower() if declared else None
    if encoding is not None and re.match(r"(utf|ucs)-?(16|32|2|4)", encoding):
        encoding = None  # these would show in the declaration itself, so it has been recoded
    encoding = _EXTENDED.get(encoding, encoding)
    try:
        text = text_lib.decode(data, encoding)
        if encoding not in (None, "utf-8") and _is_utf8(data, text, encoding):
            text = data.decode("utf-8-sig")
    except ValueError as error:
        if "unknown encoding" in str(error):
            raise ValueError(f"is not well-formed XML (it {error})") from error
        if "(byte 0x" not in str(error):  # not the encoding is at fault
            raise
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode(encoding or "utf-8", errors="replace")
    return re.sub(r"^\s*<\?xml\b.*?\?>", "", text, count=1, flags=re.DOTALL)


# Encodings -> the larger one that programs write under that name.
_EXTENDED = {
    "gb2312": "gb18030", "gbk": "gb18030", "gb_2312-80": "gb18030", "shift_jis": "cp932",
    "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949", "big5": "cp950", "us-ascii": "utf-8", "ascii": "utf-8",
}  # fmt: skip


def _is_utf8(data, text, encoding):
    """Whether data that could be decoded as declared, to text, are UTF-8 for all that.

    Text of another encoding is seldom valid UTF-8: two characters of GB2312 can be, as two letters,
    but hardly ever a character that UTF-8 writes with three bytes.
    """
    try:
        other = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    letters = [letter for letter in other if letter > "\x7f"]
    one_byte_each = len(text) == len(data)
    # In Western text, an accented capital before a sign, which is such a pair, is rare.
    fewest = 1 if encoding in _LATIN else 2
    return any(letter >= "\u0800" for letter in letters) or (
        one_byte_each and len(letters) >= fewest
    )


_LATIN = ("iso-8859-1", "iso8859-1", "iso-8859-15", "latin-1", "latin1", "windows-1252", "cp1252")


def _image_path(folder, name, annotation, folders):
    """The image file of a name: with the suffix in <filename>, else with any other known suffix.

    Args:
      folders: {folder of images: its `names.Files`}, filled here.
    """
    given = annotation.findtext("filename", "").strip()
    suffix = pathlib.PurePath(given).suffix or ".jpg"
    if folder not in folders:
        folders[folder] = names_lib.Files(folder / "JPEGImages")
    files = folders[folder]
    path = files.exact(f"{name}{suffix}")
    suffixes = (suffix, *headers.SUFFIXES)
    if path is None:
        # Another case of the suffix is no other spelling.
        cases = (f"{name}{form}" for s in suffixes for form in (s, s.lower(), s.upper()))
        path = next(filter(None, map(files.exact, cases)), None)
    if path is None:
        path = files.find(*(f"{name}{suffix}" for suffix in suffixes))
        if path is not None:
            files.respelled[name] = path
    return pathlib.Path(path or folder / "JPEGImages" / f"{name}{suffix}")


def _size(annotation, file, path, exif):
    """(height, width) px, and whether the annotation has them; else they are the image file's."""
    size = []
    for side in ("height", "width"):
        text = annotation.findtext(f"size/{side}", "").strip() or "0"
        value = _number(text)
        if value is None:
            raise records_lib.DataError(
                f"annotation file {file} has the {side} {text!r}, which is not a number of pixels"
            )
        size.append(int(value))
    if min(size) > 0:
        return tuple(size), True
    return records_lib.read_image_size(path, exif), False


def _read_object(element):
    """(class name, [x1, y1, x2, y2] px from 0, difficult) of an <object>.

    Raises ValueError that says what is missing or malformed.
    """
    name = names_lib.normal(element.findtext("name", "").strip())
    if not name:
        raise ValueError("has no name")
    if "\ufffd" in name:
        raise ValueError(
            f"has the name {name!r}, whose letters are not in the declared encoding of the file; "
            "save the file as UTF-8"
        )
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

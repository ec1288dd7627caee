"""PASCAL VOC annotations: the 2007 and 2012 data sets, and other data in their layout.

Files (devkit documentation, section 8): `ImageSets/Main/<split>.txt` lists names, and each name has
`Annotations/<name>.xml` and `JPEGImages/<name>.jpg`.  Boxes count pixels from 1 and include both
ends; like mmdetection's `XMLDataset`, this reader subtracts 1 from all four numbers, which leaves
the last row and column of a box out.  Objects marked `difficult` become `ignore`.
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


class Voc(records_lib.FileSource):
    """The images of one or several splits, one after another.

    Args:
      root: the folder that holds `VOC2007` and `VOC2012`, or one that itself holds `Annotations`,
        `ImageSets` and `JPEGImages`.
      splits: "2007_trainval" is VOC2007/ImageSets/Main/trainval.txt, and "trainval" is
        ImageSets/Main/trainval.txt of a root of the second kind.
      class_names: the classes; the position is the label.
      strict: raise at the first image or object that cannot be used; False leaves it out and
        says so in `problems`.
    Raises:
      DataError: a folder or split is missing; and with `strict`, an annotation file is missing or
        cannot be understood, or a box cannot be used.
    """

    def __init__(
        self,
        root,
        splits=("2007_trainval", "2012_trainval"),
        class_names=CLASS_NAMES,
        strict=True,
    ):
        root = pathlib.Path(root)
        paths, image_ids, sizes, problems = [], [], [], []
        image, boxes, names, difficult, places = [], [], [], [], []
        for folder, name in _listed(root, (splits,) if isinstance(splits, str) else splits):
            file = folder / "Annotations" / f"{name}.xml"
            try:
                path, size, objects = _read_annotation(folder, file)
            except records_lib.DataError as error:
                if strict:
                    raise
                problems.append(f"image {name} is left out: {error}")
                continue
            for number, (class_name, box, hard) in enumerate(objects, start=1):
                image.append(len(paths))
                boxes.append(box)
                names.append(class_name)
                difficult.append(hard)
                places.append((file, number))
            paths.append(str(path))
            image_ids.append(name)
            sizes.append(size)

        def describe(k):
            file, number = places[k]
            corners = " ".join(f"{value + 1:g}" for value in boxes[k])
            return f"{file}, object {number} ({names[k]}, xmin ymin xmax ymax {corners})"

        image = np.array(image, np.int64)
        box_sizes = np.array(sizes, np.int64).reshape(-1, 2)[image]
        checked = records_lib.check_boxes(boxes, names, class_names, box_sizes, describe, strict)
        annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=np.array(difficult, bool)[checked.keep],
            area=np.prod(checked.boxes[:, 2:] - checked.boxes[:, :2], axis=1),
            num_images=len(paths),
        )
        super().__init__(
            class_names,
            paths,
            image_ids,
            sizes,
            annotations,
            problems=(*problems, *checked.problems),
            dropped_boxes=len(checked.problems),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(problems),
        )


def _listed(root, splits):
    """(folder, name) of each image that the splits list."""
    if not root.is_dir():
        raise records_lib.DataError(
            f"data folder {root} does not exist; give the folder that holds VOC2007 and VOC2012, "
            "or Annotations, ImageSets and JPEGImages"
        )
    listed = []
    for split in splits:
        year = re.match(r"(\d{4})_", split)
        folder = root / f"VOC{year[1]}" if year else root
        file = folder / "ImageSets" / "Main" / f"{split[5:] if year else split}.txt"
        if not file.is_file():
            raise records_lib.DataError(
                f"split {split!r} needs the file {file}, which does not exist; "
                f"splits under {root}: {', '.join(_splits_under(root)) or 'none'}"
            )
        names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
        listed += [(folder, name) for name in names]
    return listed


def _splits_under(root):
    found = [path.stem for path in root.glob("ImageSets/Main/*.txt")]
    for path in root.glob("VOC????/ImageSets/Main/*.txt"):
        if "_" not in path.stem:  # cat_trainval.txt and the like list the images of one class
            found.append(f"{path.parts[-4][3:]}_{path.stem}")
    return sorted(found)


def _read_annotation(folder, file):
    """(image path, (height, width), objects) of an XML file.

    Objects are (class name, [x1, y1, x2, y2] px from 0, difficult).
    """
    try:
        root = ElementTree.parse(file).getroot()
    except FileNotFoundError:
        raise records_lib.DataError(
            f"annotation file {file} does not exist; put it there, or take its name off the split"
        ) from None
    except ElementTree.ParseError as error:
        raise records_lib.DataError(
            f"annotation file {file} is not well-formed XML ({error}); correct it or fetch it again"
        ) from error
    try:
        objects = [_read_object(element) for element in root.findall("object")]
        size = tuple(int(float(root.findtext(f"size/{side}", "0"))) for side in ("height", "width"))
    except ValueError as error:
        raise records_lib.DataError(f"annotation file {file}: {error}; correct it") from error
    suffix = pathlib.PurePath(root.findtext("filename", "").strip()).suffix
    path = folder / "JPEGImages" / f"{file.stem}{suffix or '.jpg'}"
    if min(size) <= 0:
        size = records_lib.read_image_size(path)
    return path, size, objects


def _read_object(element):
    """Raises ValueError that says what is missing or no number."""
    name = element.findtext("name")
    if name is None:
        raise ValueError("an object has no name")
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{side}")
        if text is None:
            raise ValueError(f"an object ({name.strip()}) has no bndbox/{side}")
        box.append(float(text) - 1)
    return name.strip(), box, bool(int(element.findtext("difficult", "0")))

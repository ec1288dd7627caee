"""COCO annotations: a folder of images and one `instances` file in JSON.

Category ids have gaps (1..90 for 80 classes); labels are 0..C-1 in ascending order of the ids.
`iscrowd` becomes `ignore`.  Training drops objects without area or with a side under one pixel and
clips the others to the image, as mmdetection's `CocoDataset` does.  Evaluation keeps all objects as
annotated, as pycocotools does.  Images without objects are kept; `wrappers.for_training` drops
them.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from detlab.data import names as names_lib
from detlab.data import records as records_lib


class Coco(records_lib.FileSource):
    """The images of an annotation file, in its order.

    `category_ids` are the data set's ids of the classes, in the order of `class_names`.

    Args:
      images: the folder of the image files.
      annotation_file: an `instances_*.json`.
      class_names: the classes to use, in label order; objects of other classes are dropped.  None
        uses all classes of the file.
      strict: raise at the first unusable image or object; False skips it and reports it in
        `problems`.
      min_side: px; for training: objects with a smaller side or without area are dropped, and boxes
        are clipped to the image.  0, for evaluation: all boxes are kept as annotated, even without
        area or outside the image, so the ground truth equals that of the official evaluation.
      exif: see `records.decode_image`.
    Raises:
      DataError: the folder or file is missing, or the file is not in COCO format or lacks one of
        `class_names`; with `strict`, also if an image or object is unusable, or if there are
        objects but none of `class_names`.
    """

    def __init__(
        self, images, annotation_file, class_names=None, strict=True, min_side=1, exif="auto"
    ):
        folder = pathlib.Path(images)
        if not folder.is_dir():
            raise records_lib.DataError(
                f"image folder {folder} does not exist; give the folder that holds the images"
            )
        content = _read(annotation_file)
        name_of = _categories(content["categories"], annotation_file)
        chosen = tuple(map(names_lib.normal, class_names or name_of.values()))
        for name in chosen:
            if name not in name_of.values():
                raise records_lib.DataError(
                    f"annotation file {annotation_file} has no class {name!r}; "
                    f"its classes: {', '.join(name_of.values())}"
                )

        bad_images = records_lib.Faults(strict)
        used, position = [], {}
        for number, image in enumerate(content["images"]):
            fault = _fault(image, _IMAGE) or (
                f"repeats the id {image['id']!r}" if image["id"] in position else ""
            )
            if fault:
                bad_images.add(f"{annotation_file}: entry {number} of 'images' {fault}")
                continue
            position[image["id"]] = len(used)
            used.append(image)
        sizes = np.array([(i["height"], i["width"]) for i in used], np.int64).reshape(-1, 2)

        bad_objects = records_lib.Faults(strict)
        objects, num_tiny = [], 0
        for number, annotation in enumerate(content["annotations"]):
            fault = _object_fault(annotation, position, name_of)
            if fault:
                bad_objects.add(f"{annotation_file}: entry {number} of 'annotations' {fault}")
            elif (
                min_side
                and name_of[annotation["category_id"]] in chosen
                and (min(annotation["bbox"][2:]) < min_side or _area(annotation) <= 0)
            ):
                num_tiny += 1
            else:
                objects.append(annotation)
        tiny = f"objects without area or with a side under {min_side} px are dropped: {num_tiny}"

        names = [name_of[a["category_id"]] for a in objects]
        image = np.array([position[a["image_id"]] for a in objects], np.int64)
        xywh = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)

        def describe(k):
            place = f"{annotation_file}, annotation {objects[k].get('id', '')}"
            return f"{place} ({names[k]}, bbox {objects[k]['bbox']})"

        checked = records_lib.check_boxes(
            np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            names,
            chosen,
            sizes[image],
            describe,
            strict,
            chosen_from=annotation_file if class_names else None,
            clip=bool(min_side),
        )
        annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=np.array([a.get("iscrowd", 0) for a in objects], bool)[checked.keep],
            area=np.array([_area(a) for a in objects], np.float64)[checked.keep],
            num_images=len(used),
        )
        files = names_lib.Files(folder)
        paths = files.paths([image["file_name"] for image in used])
        notes = files.problems(annotation_file)
        problems = [*bad_images.sentences, *bad_objects.sentences, *checked.problems, *notes]
        super().__init__(
            chosen,
            paths,
            [image["id"] for image in used],
            sizes,
            annotations,
            problems=(*problems, tiny) if num_tiny else problems,
            dropped_boxes=len(content["annotations"]) - int(checked.keep.sum()),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(bad_images.sentences),
            exif=exif,
        )
        id_of = {name: category_id for category_id, name in name_of.items()}
        self.category_ids = tuple(id_of[name] for name in chosen)


def _read(file):
    """The content of the JSON file, checked for the three lists that it must have."""
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise records_lib.DataError(
            f"annotation file {file} cannot be read ({error.strerror}); give the path of an "
            "instances_*.json"
        ) from error
    except (ValueError, RecursionError) as error:  # bad JSON, bad encoding or deep nesting
        raise records_lib.DataError(
            f"annotation file {file} is not valid JSON ({error}); download it again"
        ) from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise records_lib.DataError(
                f"annotation file {file} has no list {name!r}; give an instances_*.json in COCO "
                "format"
            )
    return content


def _categories(categories, file):
    """{category id: name} in ascending order of the ids.

    An unusable category always raises: skipping it would shift all labels.
    """
    for number, category in enumerate(categories):
        fault = _fault(category, _CATEGORY)
        if fault:
            raise records_lib.DataError(
                f"annotation file {file}: entry {number} of 'categories' {fault}; correct the file"
            )
    ordered = sorted(categories, key=lambda c: c["id"])
    name_of = {c["id"]: names_lib.normal(c["name"]) for c in ordered}
    if len(name_of) < len(categories) or len(set(name_of.values())) < len(categories):
        raise records_lib.DataError(
            f"annotation file {file} gives several categories the same id or name; make them unique"
        )
    return name_of


def _area(annotation):
    """The annotated area, px^2, or the area of the box if none is annotated."""
    _, _, width, height = annotation["bbox"]
    return annotation.get("area", width * height)


# ------------------------------------------------------------------------------------------------
# Entries of the file


class _Kind(NamedTuple):
    """A condition on a value of an entry, and its wording in messages."""

    words: str
    fits: Callable[[Any], bool]


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    # 1e30 also excludes numbers that float32 cannot hold; comparisons with NaN are False.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_box(value):
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_INTEGER = _Kind("an integer", _is_integer)
_NUMBER = _Kind("a finite number", _is_number)
_TEXT = _Kind("a non-empty string", lambda value: isinstance(value, str) and value != "")
_ID = _Kind("an integer or a string", lambda v: _is_integer(v) or isinstance(v, str))
_SIDE = _Kind("a number of at least 1", lambda v: _is_number(v) and 1 <= v < 2**31)
_BOX = _Kind("a list of 4 finite numbers: x, y, width, height", _is_box)
_FLAG = _Kind("0 or 1", lambda value: isinstance(value, int) and value in (0, 1))

_IMAGE = {"id": _ID, "file_name": _TEXT, "height": _SIDE, "width": _SIDE}
_OBJECT = {"image_id": _ID, "category_id": _INTEGER, "bbox": _BOX}
_OPTIONAL = {"area": _NUMBER, "iscrowd": _FLAG}  # of an object
_CATEGORY = {"id": _INTEGER, "name": _TEXT}


def _object_fault(annotation, position, name_of):
    """`_fault` for an entry of 'annotations'; its image and category must be known."""
    fault = _fault(annotation, _OBJECT) or _fault(
        annotation, {key: kind for key, kind in _OPTIONAL.items() if key in annotation}
    )
    if fault:
        return fault
    if annotation["image_id"] not in position:
        return f"has the image_id {annotation['image_id']!r}, which no usable image has"
    if annotation["category_id"] not in name_of:
        return f"has the category_id {annotation['category_id']}, which no category has"
    return ""


def _fault(entry, kinds):
    """What is wrong with an entry, in words that follow its name; "" if nothing is."""
    if not isinstance(entry, dict):
        return f"is {_short(entry)}, which is not a JSON object"
    for key, kind in kinds.items():
        if key not in entry:
            return f"has no {key!r}"
        if not kind.fits(entry[key]):
            return f"has the {key} {_short(entry[key])}, which is not {kind.words}"
    return ""


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

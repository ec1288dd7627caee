"""COCO annotations: a folder of images and one `instances` file in JSON.

Category ids have gaps (1..90 for 80 classes); labels are 0..C-1 in ascending order of the ids.
`iscrowd` becomes `ignore`.  Training leaves out objects of no area or under one pixel wide or high
and clips the others to the image, as mmdetection's `CocoDataset` does; evaluation keeps all of them
as they are annotated, as pycocotools does.  Images without objects stay: `wrappers.for_training`
drops them.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from detlab.data import records as records_lib


class Coco(records_lib.FileSource):
    """The images of an annotation file, in its order.

    `category_ids` are the data set's ids of the classes, in the order of `class_names`.

    Args:
      images: the folder of the image files.
      annotation_file: an `instances_*.json`.
      class_names: the classes to use, in the order of their labels; objects of others are left out.
        None for all of the file.
      strict: raise at the first image or object that cannot be used; False leaves it out and says
        so in `problems`.
      min_side: px; smaller objects, or of no area, are left out, and boxes are clipped to the
        image: for training.  0 keeps all boxes as annotated, also those of no area and outside
        the image: for evaluation, with the ground truth of the official one.
    Raises:
      DataError: the folder or file is missing, the file is no COCO file, or lacks one of
        `class_names`; and with `strict`, an image or object cannot be used, or there are objects
        and none is of `class_names`.
    """

    def __init__(self, images, annotation_file, class_names=None, strict=True, min_side=1):
        folder = pathlib.Path(images)
        if not folder.is_dir():
            raise records_lib.DataError(
                f"image folder {folder} does not exist; give the folder of the image files"
            )
        content = _read(annotation_file)
        name_of = _categories(content["categories"], annotation_file)
        chosen = tuple(class_names or name_of.values())
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
        tiny = f"{num_tiny} objects of no area or a side under {min_side} px are left out"

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
        problems = [*bad_images.sentences, *bad_objects.sentences, *checked.problems]
        super().__init__(
            chosen,
            [str(folder / image["file_name"]) for image in used],
            [image["id"] for image in used],
            sizes,
            annotations,
            problems=(*problems, tiny) if num_tiny else problems,
            dropped_boxes=len(content["annotations"]) - int(checked.keep.sum()),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(bad_images.sentences),
        )
        id_of = {name: category_id for category_id, name in name_of.items()}
        self.category_ids = tuple(id_of[name] for name in chosen)


def _read(file):
    """The content of the JSON file, with the three lists that it must have."""
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise records_lib.DataError(
            f"annotation file {file} cannot be read ({error.strerror}); give the path of an "
            "instances_*.json"
        ) from error
    except (ValueError, RecursionError) as error:  # JSON, its text encoding, or lists in lists
        raise records_lib.DataError(
            f"annotation file {file} is not valid JSON ({error}); fetch it again"
        ) from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise records_lib.DataError(
                f"annotation file {file} has no list {name!r}; give an instances_*.json in the "
                "format of COCO"
            )
    return content


def _categories(categories, file):
    """{category id: name} in ascending order of the ids.

    A category that cannot be used is an error always: without it all labels would shift.
    """
    for number, category in enumerate(categories):
        fault = _fault(category, _CATEGORY)
        if fault:
            raise records_lib.DataError(
                f"annotation file {file}: entry {number} of 'categories' {fault}; correct it"
            )
    name_of = {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}
    if len(name_of) < len(categories) or len(set(name_of.values())) < len(categories):
        raise records_lib.DataError(
            f"annotation file {file} gives one id or one class name to several categories; "
            "tell them apart"
        )
    return name_of


def _area(annotation):
    """The annotated area, px^2; that of the box where there is none."""
    _, _, width, height = annotation["bbox"]
    return annotation.get("area", width * height)


# ------------------------------------------------------------------------------------------------
# Entries of the file


class _Kind(NamedTuple):
    """What a value of an entry must be."""

    words: str
    fits: Callable[[Any], bool]


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    # 1e30 also keeps out numbers that float32 cannot hold; comparing it with NaN gives False.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_box(value):
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_INTEGER = _Kind("a whole number", _is_integer)
_NUMBER = _Kind("a finite number", _is_number)
_TEXT = _Kind("a text", lambda value: isinstance(value, str) and value != "")
_ID = _Kind("a whole number or a text", lambda v: _is_integer(v) or isinstance(v, str))
_SIDE = _Kind("a number of px from 1", lambda v: _is_number(v) and 1 <= v < 2**31)
_BOX = _Kind("a list of 4 finite numbers: x, y, width, height", _is_box)
_FLAG = _Kind("0 or 1", lambda value: isinstance(value, int) and value in (0, 1))

_IMAGE = {"id": _ID, "file_name": _TEXT, "height": _SIDE, "width": _SIDE}
_OBJECT = {"image_id": _ID, "category_id": _INTEGER, "bbox": _BOX}
_OPTIONAL = {"area": _NUMBER, "iscrowd": _FLAG}  # of an object
_CATEGORY = {"id": _INTEGER, "name": _TEXT}


def _object_fault(annotation, position, name_of):
    """`_fault` of an entry of 'annotations', which must be of known images and categories."""
    fault = _fault(annotation, _OBJECT) or _fault(
        annotation, {key: kind for key, kind in _OPTIONAL.items() if key in annotation}
    )
    if fault:
        return fault
    if annotation["image_id"] not in position:
        return f"is of image {annotation['image_id']!r}, which is not listed or not usable"
    if annotation["category_id"] not in name_of:
        return f"is of category {annotation['category_id']}, which is not listed"
    return ""


def _fault(entry, kinds):
    """What is wrong with an entry, in words that follow its name; "" if nothing is."""
    if not isinstance(entry, dict):
        return f"is {_short(entry)}, which is no object with keys and values"
    for key, kind in kinds.items():
        if key not in entry:
            return f"has no {key!r}"
        if not kind.fits(entry[key]):
            return f"has the {key} {_short(entry[key])}, which is not {kind.words}"
    return ""


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

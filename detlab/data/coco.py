"""COCO annotations: a folder of images and one `instances` file in JSON.

Category ids have gaps (1..90 for 80 classes); labels are 0..C-1 in ascending order of the ids.
As in mmdetection's `CocoDataset`, an object of no area or under one pixel wide or high is left out,
and `iscrowd` becomes `ignore`.  Images without objects stay: `records.for_training` drops them.
"""

import json
import pathlib

import numpy as np

from detlab.data import records as records_lib

# What is read of each list of the file; `area` and `iscrowd` may be missing.
_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class Coco(records_lib.FileSource):
    """The images of an annotation file, in its order.

    `category_ids` are the data set's ids of the classes, in the order of `class_names`.

    Args:
      images: the folder of the image files.
      annotation_file: an `instances_*.json`.
      class_names: the classes to use, in the order of their labels; None for all of the file.
      strict: raise at the first object that cannot be used; False leaves it out and says so in
        `problems`.
      min_side: px; smaller objects, or of no area, are left out, as the reference does in training.
        0 keeps all, as the official evaluation does.
    Raises:
      DataError: the folder or file is missing, the file is no COCO file, or lacks one of
        `class_names`; and with `strict`, an object cannot be used.
    """

    def __init__(self, images, annotation_file, class_names=None, strict=True, min_side=1):
        folder = pathlib.Path(images)
        if not folder.is_dir():
            raise records_lib.DataError(
                f"image folder {folder} does not exist; give the folder of the image files"
            )
        content = _read(annotation_file)
        name_of = _classes(content["categories"], class_names, annotation_file)
        not_asked_for = {c["id"] for c in content["categories"]} - name_of.keys()
        sizes = np.array([(i["height"], i["width"]) for i in content["images"]]).reshape(-1, 2)
        position = {image["id"]: i for i, image in enumerate(content["images"])}

        objects, image, homeless, num_tiny = [], [], [], 0
        for annotation in content["annotations"]:
            _, _, width, height = annotation["bbox"]
            if annotation["image_id"] not in position:
                homeless.append(
                    f"{annotation_file}, annotation {annotation.get('id', '')} is of image "
                    f"{annotation['image_id']}, which the file does not list"
                )
            elif annotation["category_id"] in not_asked_for:
                continue
            elif min_side and (
                min(width, height) < min_side or annotation.get("area", width * height) <= 0
            ):
                num_tiny += 1
            else:
                objects.append(annotation)
                image.append(position[annotation["image_id"]])
        if homeless and strict:
            raise records_lib.DataError(
                f"{homeless[0]}; correct it, or leave such objects out with {records_lib.LEAVE_OUT}"
            )
        tiny = f"{annotation_file}: {num_tiny} objects of no area or a side under {min_side} px"

        names = [name_of.get(a["category_id"], f"category {a['category_id']}") for a in objects]
        xywh = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        area = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in objects])
        crowd = np.array([a.get("iscrowd", 0) for a in objects], bool)
        image = np.array(image, np.int64)

        def describe(k):
            place = f"{annotation_file}, annotation {objects[k].get('id', '')}"
            return f"{place} ({names[k]}, bbox {objects[k]['bbox']})"

        class_names = tuple(name_of.values())
        checked = records_lib.check_boxes(boxes, names, class_names, sizes[image], describe, strict)
        annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=crowd[checked.keep],
            area=area[checked.keep],
            num_images=len(sizes),
        )
        super().__init__(
            class_names,
            [str(folder / image["file_name"]) for image in content["images"]],
            [image["id"] for image in content["images"]],
            sizes,
            annotations,
            problems=(*homeless, *((tiny,) if num_tiny else ()), *checked.problems),
            dropped_boxes=len(homeless) + num_tiny + len(checked.problems),
            clipped_boxes=checked.num_clipped,
        )
        self.category_ids = tuple(name_of)


def _read(file):
    """The content of the JSON file, with every entry that `_KEYS` names."""
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise records_lib.DataError(
            f"annotation file {file} cannot be read ({error.strerror}); give the path of an "
            "instances_*.json"
        ) from error
    except ValueError as error:  # JSON or its text encoding
        raise records_lib.DataError(
            f"annotation file {file} is not valid JSON ({error}); fetch it again"
        ) from error
    for name, keys in _KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise records_lib.DataError(
                f"annotation file {file} has no list {name!r}; give an instances_*.json in the "
                "format of COCO"
            )
        for number, entry in enumerate(content[name]):
            for key in keys:
                if key not in entry:
                    raise records_lib.DataError(
                        f"annotation file {file}: entry {number} of {name!r} has no {key!r}; add it"
                    )
            if name == "annotations" and len(entry["bbox"]) != 4:
                raise records_lib.DataError(
                    f"annotation file {file}: entry {number} of {name!r} has a bbox of "
                    f"{len(entry['bbox'])} numbers; it takes x, y, width and height"
                )
    return content


def _classes(categories, class_names, file):
    """{category id: name} in the order of the labels."""
    id_of = {c["name"]: c["id"] for c in sorted(categories, key=lambda c: c["id"])}
    if len(id_of) < len(categories):
        raise records_lib.DataError(
            f"annotation file {file} gives one class name to several categories; rename them"
        )
    for name in class_names or ():
        if name not in id_of:
            raise records_lib.DataError(
                f"annotation file {file} has no class {name!r}; its classes: {', '.join(id_of)}"
            )
    return {id_of[name]: name for name in class_names or id_of}

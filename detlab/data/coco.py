"""COCO annotations: a folder of images and one `instances` file in JSON.

Category ids have gaps (1..90 for 80 classes); labels are 0..C-1 in ascending order of the ids.
`iscrowd` becomes `ignore`, and so do other flags of its kind, see `coco_json.Flags`.  Training
drops objects without area or with a side under one pixel and clips the others to the image, as
mmdetection's `CocoDataset` does.  Evaluation keeps all objects as annotated, as pycocotools does.
Images without objects are kept; `wrappers.for_training` drops them.
"""

import pathlib

import numpy as np

from detlab.data import coco_json
from detlab.data import names as names_lib
from detlab.data import records as records_lib


class Coco(records_lib.FileSource):
    """The images of an annotation file, in its order.

    `category_labels` is {category id of the file: label, or -1 if its objects are dropped}, and
    `category_ids` are the ids of the classes, in the order of `class_names`; None if the file lacks
    a class.

    Args:
      images: the folder of the image files.
      annotation_file: an `instances_*.json`.
      class_names: the classes to use, in label order; objects of other classes are dropped, and
        classes that the file lacks have no objects.  None uses all classes of the file.
      strict: raise at the first unusable image or object; False skips it and reports it in
        `problems`.
      min_side: px; for training: objects with a smaller side or without area are dropped, and boxes
        are clipped to the image.  0, for evaluation: all boxes are kept as annotated, even without
        area or outside the image, so the ground truth equals that of the official evaluation.
      exif: see `records.decode_image`.
    Raises:
      DataError: the folder or file is missing, or the file is not in COCO format or lacks all of
        `class_names`, or one that looks misspelt; with `strict`, also if an image or object is
        unusable, or if there are objects but none of `class_names`.
    """

    def __init__(
        self, images, annotation_file, class_names=None, strict=True, min_side=1, exif="auto"
    ):
        folder = pathlib.Path(images)
        if not folder.is_dir():
            raise records_lib.DataError(
                f"image folder {folder} does not exist; give the folder that holds the images"
            )
        content = coco_json.read(annotation_file)
        categories = coco_json.categories(content, annotation_file)
        name_of = categories.name_of
        known = tuple(dict.fromkeys(name_of.values()))
        chosen = tuple(map(names_lib.normal, class_names or known))
        lacking = _lacking(chosen, known, annotation_file)

        bad_images = records_lib.Faults(strict)
        files = names_lib.Files(folder)
        listed = [image["file_name"] for image in content["images"] if _has_name(image)]
        paths = dict(zip(listed, files.paths(listed), strict=True))
        used, position, sizes, sized = [], {}, [], []
        for number, image in enumerate(content["images"]):
            try:
                image_id, size, annotated = _image(image, position, paths, exif)
            except records_lib.DataError as error:
                bad_images.add(f"{annotation_file}: entry {number} of 'images' {error}")
                continue
            position[image_id] = len(used)
            used.append(image)
            sizes.append(size)
            sized.append(annotated)
        sizes = np.array(sizes, np.int64).reshape(-1, 2)

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
            known=known,
        )
        flags = coco_json.Flags()
        keep = np.flatnonzero(checked.keep)
        annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=np.array([flags.ignores(objects[k]) for k in keep], bool),
            area=np.array([_area(a) for a in objects], np.float64)[checked.keep],
            num_images=len(used),
        )
        problems = [
            *bad_images.told("images"),
            *bad_objects.told("objects"),
            *checked.problems,
            *lacking,
            *categories.problems,
            *flags.problems,
            *files.problems(annotation_file),
        ]
        super().__init__(
            chosen,
            [paths[image["file_name"]] for image in used],
            list(position),
            sizes,
            annotations,
            problems=(*problems, tiny) if num_tiny else problems,
            dropped_boxes=len(content["annotations"]) - int(checked.keep.sum()),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(bad_images.sentences),
            exif=exif,
            sized=sized,
        )
        label_of = {name: label for label, name in enumerate(chosen)}
        self.category_labels = {key: label_of.get(name, -1) for key, name in name_of.items()}
        self.category_labels |= dict.fromkeys(categories.left_out, -1)
        self.category_ids = coco_json.category_ids(self.category_labels, len(chosen))


def _lacking(chosen, known, file):
    """A sentence on chosen classes that the file does not have; none if it has all.

    A file of a part of the data, such as one for evaluation, may list only the categories in it.
    """
    lacking = [name for name in chosen if name not in known]
    others = [name for name in known if name not in chosen]
    for name in lacking:
        meant = records_lib.meant_class(name, others)
        if meant or len(lacking) == len(chosen):
            end = f"did you mean {meant!r}?" if meant else "correct class_names"
            raise records_lib.DataError(
                f"annotation file {file} has no class {name!r}; its classes: {', '.join(known)}; "
                f"{end}"
            )
    return records_lib.lacking_classes(f"annotation file {file}", lacking, known)


def _has_name(image):
    return isinstance(image, dict) and isinstance(image.get("file_name"), str)


def _image(image, taken, paths, exif):
    """(id, (height, width), whether that is annotated) of an entry of 'images'.

    Without a size, it is that of the image file.  Raises DataError in words that follow the name of
    the entry.
    """
    fault = coco_json.fault(image, coco_json.IMAGE)
    if fault:
        raise records_lib.DataError(fault)
    image_id = coco_json.whole(image["id"])
    if image_id in taken:
        raise records_lib.DataError(f"repeats the id {image_id!r}")
    no_size = coco_json.fault(image, coco_json.SIZE)
    if not no_size:
        return image_id, (int(image["height"]), int(image["width"])), True
    try:
        return image_id, records_lib.read_image_size(paths[image["file_name"]], exif), False
    except records_lib.DataError as error:
        raise records_lib.DataError(f"{no_size}, and {error}") from error


def _area(annotation):
    """The annotated area, px^2, or the area of the box if none is annotated."""
    area = annotation.get("area")
    if coco_json.given(area):
        return area
    _, _, width, height = annotation["bbox"]
    return width * height


def _object_fault(annotation, position, name_of):
    """`coco_json.fault` for an entry of 'annotations'; its image and category must be known."""
    fault = coco_json.fault(annotation, coco_json.OBJECT) or coco_json.fault(
        annotation, {key: kind for key, kind in coco_json.OPTIONAL.items() if key in annotation}
    )
    if fault:
        return fault
    image_id = coco_json.whole(annotation["image_id"])
    if image_id not in position:
        hint = coco_json.unknown_id(image_id, position)
        return f"has the image_id {image_id!r}, which no usable image has{hint}"
    category_id = coco_json.whole(annotation["category_id"])
    if category_id not in name_of:
        hint = coco_json.unknown_id(category_id, name_of)
        return f"has the category_id {category_id!r}, which no category has{hint}"
    return ""

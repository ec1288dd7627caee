r"""Data sets prepared by TensorFlow Datasets, read without TensorFlow.

Any data set works that is prepared in the random-access format `array_record` and has an image and
a sequence of objects with a `BBoxFeature`.  Only its files are read: neither its builder's code
nor TensorFlow is imported, and TFDS itself only when such a source is opened.

The files are prepared once, on any machine.  Most builders of TFDS need TensorFlow for that; your
own builders do not, as long as they yield encoded images:

    python -c "import tensorflow_datasets as tfds; \
      tfds.builder('voc/2007', data_dir='data', file_format='array_record').download_and_prepare()"
"""

import pathlib
from typing import Any

import numpy as np

from detlab.data import headers
from detlab.data import records as records_lib

_IGNORE = ("is_crowd", "is_difficult", "invalid")  # features of objects that become `ignore`
_LABELS = ("label", "type")  # preferred names of the class feature
_IDS = ("image/id", "image/filename")


class Tfds:
    """The images of one or several splits, one after another.

    Image, boxes and class are found by their feature types.  The object features `is_crowd`,
    `is_difficult` and `invalid` become `ignore`, and `area` is kept.  The id of an image is its
    `image/id` or `image/filename`; if it has neither, or they are not unique, the id is split and
    position, such as `train/0`.

    Opening the source reads every example once, including the image bytes, for the boxes and the
    image size in the header.  An image is decoded only if its header has no size.

    Args:
      name: of the data set in TFDS, such as "voc/2007"; add the version if several are prepared,
        such as "voc/2007:4.0.0".
      splits: such as "train", or a part in the syntax of TFDS, such as "train[:80%]".
      data_dir: the folder of prepared data sets.
      class_names: the classes to use, in label order; objects of other classes are dropped.  None
        uses all classes.  If the data set has no classes: one name for all objects ("object" by
        default).
      strict: raise at the first unusable image or object; False skips it and reports it in
        `problems`.
      exif: see `records.decode_image`; "auto" leaves images as stored, as TFDS reads them.
    Raises:
      DataError: the data set is not prepared, not as array_record, or several times; a split is
        unknown; there is no box feature, or a class of `class_names` is unknown; with `strict`,
        also if an image or object is unusable, or if there are objects but none of `class_names`.
    """

    def __init__(self, name, splits, data_dir, class_names=None, strict=True, exif="auto"):
        import tensorflow_datasets as tfds  # slow to import; other sources do not need it

        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        folder = _prepared_folder(name, pathlib.Path(data_dir))
        builder = tfds.builder_from_directory(folder)
        layout = _Layout(builder.info.features, name)
        class_names = tuple(class_names or ())
        known = layout.class_names or (class_names if len(class_names) == 1 else ("object",))
        for class_name in class_names:
            if class_name not in known:
                raise records_lib.DataError(
                    f"data set {name} has no class {class_name!r}; its classes: {', '.join(known)}"
                )
        if not splits:
            raise records_lib.DataError(
                f"no split of {name} is given; its splits: {', '.join(builder.info.splits)}"
            )
        self._examples = [_open_split(builder, name, split, layout) for split in splits]
        self._layout = layout
        self._describe = f"of {name} in {data_dir}"
        self._exif = "stored" if exif == "auto" else exif

        bad_images = records_lib.Faults(strict)
        places, sizes, image_ids, objects = [], [], [], []  # one entry per image
        turned = []  # positions of the images with an EXIF orientation
        for k, examples in enumerate(self._examples):
            for position in range(len(examples)):
                what = f"image {splits[k]}/{position} {self._describe}"
                try:
                    example = _read(examples, position, what)
                    data = example[layout.image]
                    size = records_lib.image_size(data, what, _PREPARE_AGAIN, self._exif)
                except records_lib.DataError as error:
                    bad_images.add(str(error))
                    continue
                if headers.orientation(data) != 1:
                    turned.append(len(places))
                places.append((k, position))
                sizes.append(size)
                image_ids.append(layout.id_of(example))
                objects.append(layout.objects_of(example, size))
        self._places = places
        self._names = [f"{splits[k]}/{position}" for k, position in places]
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        unique = None not in image_ids and len(set(image_ids)) == len(image_ids)
        self._image_ids = image_ids if unique else self._names

        image = np.repeat(np.arange(len(objects)), [len(columns["boxes"]) for columns in objects])
        boxes, labels, ignore, area = (
            np.concatenate([column, *(columns[key] for columns in objects)])
            for key, column in _NO_OBJECTS.items()
        )
        names = [known[label] if label >= 0 else _NO_CLASS for label in labels]

        def describe(j):
            number = j - np.searchsorted(image, image[j]) + 1
            place = f"image {self._names[image[j]]} {self._describe}, object {number}"
            corners = " ".join(f"{value:g}" for value in boxes[j])
            return f"{place} ({names[j]}, x1 y1 x2 y2 {corners})"

        checked = records_lib.check_boxes(
            boxes,
            names,
            class_names or known,
            self._sizes[image],
            describe,
            strict,
            chosen_from=f"{', '.join(splits)} {self._describe}" if class_names else None,
        )
        of_box = np.prod(checked.boxes[:, 2:] - checked.boxes[:, :2], axis=1)
        area = area[checked.keep]
        self._annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=ignore[checked.keep],
            area=np.where(np.isnan(area), of_box, area),
            num_images=len(places),
        )
        self.max_objects = self._annotations.max_objects
        self.class_names = class_names or known
        notes = []
        if turned and exif == "auto":
            notes = [
                f"{len(turned)} of {len(places)} images have an EXIF orientation and stay as "
                f"stored, as TFDS reads them (the first: {self._names[turned[0]]}); "
                "config.data.exif=upright turns them"
            ]
        self.problems = (*bad_images.told("images"), *checked.problems, *notes)
        self.dropped_boxes = int((~checked.keep).sum())
        self.clipped_boxes = checked.num_clipped
        self.skipped_records = len(bad_images.sentences)
        self.filtered_records = 0

    def __len__(self):
        return len(self._places)

    def __getitem__(self, i):
        record = self.annotation(i)
        k, position = self._places[i]
        what = f"image {self.name(i)}"
        data = _read(self._examples[k], position, what)[self._layout.image]
        image = records_lib.decode_image(data, what, _PREPARE_AGAIN, self._exif)
        return {"image": image, **record}

    def annotation(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {**self._annotations[i], "index": i}

    def size(self, i: int) -> tuple[int, int]:
        height, width = self._sizes[i]
        return int(height), int(width)

    def name(self, i: int) -> str:
        return f"{self._names[i]} {self._describe}"

    def path(self, i: int) -> str | None:
        return None

    def image_id(self, i: int) -> int | str:
        return self._image_ids[i]


_PREPARE_AGAIN = "prepare the data set again"
_NO_CLASS = "(none)"  # TFDS's label -1
_NO_OBJECTS = {  # what `_Layout.objects_of` gives for an image without objects
    "boxes": np.zeros((0, 4)),
    "labels": np.zeros(0, np.int64),
    "ignore": np.zeros(0, bool),
    "area": np.zeros(0),
}


class _Layout:
    """The names of the features that hold what a record needs.

    Attributes:
      images, image: names of all images, and of the one in which to detect objects.
      objects, box, label: names of the sequence, and of box and class in it (None: no class).
      class_names: () if there is no class.
      ignore, area, id: names of optional features; [], None, None if they are missing.
    """

    def __init__(self, features, name):
        import tensorflow_datasets as tfds

        self.images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
        self.image = _one_of(self.images, ("image",), f"image feature in data set {name}")
        boxes = {
            (key, inner): f
            for key, sequence in features.items()
            if isinstance(sequence, tfds.features.Sequence)
            and isinstance(sequence.feature, tfds.features.FeaturesDict)
            for inner, f in sequence.feature.items()
            if isinstance(f, tfds.features.BBoxFeature)
        }
        what = f"sequence of objects with a BBoxFeature in data set {name}"
        self.objects, self.box = _one_of(list(boxes), (("objects", "bbox"),), what)
        box_format = boxes[self.objects, self.box].bbox_format
        # None: written by a version of TFDS that had only this format.
        if box_format is not None and box_format.value != "REL_YXYX":
            raise records_lib.DataError(
                f"data set {name} has boxes in the format {box_format.value}; prepare it with "
                "relative ymin, xmin, ymax, xmax, the default of BBoxFeature"
            )
        inner = features[self.objects].feature
        labels = [key for key, f in inner.items() if isinstance(f, tfds.features.ClassLabel)]
        what = f"ClassLabel of {self.objects!r} in data set {name}"
        self.label = _one_of(labels, _LABELS, what) if labels else None
        self.class_names = tuple(inner[self.label].names) if labels else ()
        self.ignore = [key for key in _IGNORE if key in inner]
        self.area = "area" if "area" in inner else None
        self.id = next((key for key in _IDS if key in features), None)

    def objects_of(self, example: dict[str, Any], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Columns of one example's objects: xyxy boxes px, labels, ignore, area (NaN: unknown)."""
        objects = example[self.objects]  # a dict of lists
        relative = np.array(objects[self.box], np.float64).reshape(-1, 4)  # ymin, xmin, ymax, xmax
        height, width = size
        ignore = np.zeros(len(relative), bool)
        for key in self.ignore:
            ignore |= np.array(objects[key], np.int64) == 1  # -1 is unknown
        unknown = np.full(len(relative), np.nan)
        return {
            "boxes": relative[:, [1, 0, 3, 2]] * [width, height, width, height],
            "labels": np.array(objects[self.label] if self.label else 0 * ignore, np.int64),
            "ignore": ignore,
            "area": np.array(objects[self.area] if self.area else unknown, np.float64),
        }

    def id_of(self, example: dict[str, Any]) -> int | str | None:
        """The image's id, a string or an integer; None if it has none."""
        if self.id is None:
            return None
        value = np.asarray(example[self.id]).item()
        return value.decode(errors="replace") if isinstance(value, bytes) else value


def _one_of(found, preferred, what):
    """The first preferred name that was found, or the only name found."""
    for key in preferred:
        if key in found:
            return key
    if len(found) == 1:
        return found[0]
    there = f"more than one {what}: {', '.join(map(str, found))}" if found else f"no {what}"
    raise records_lib.DataError(f"there is {there}; prepare the data set with exactly one")


# ------------------------------------------------------------------------------------------------
# Files


def _prepared_folder(name, data_dir):
    """The folder of the only prepared version of a data set."""
    if not data_dir.is_dir():
        raise records_lib.DataError(
            f"data folder {data_dir} does not exist; give the folder of prepared TFDS data sets"
        )
    # <data set>/<version> or <data set>/<config>/<version>; unfinished ones have other names.
    there = {}
    for pattern in ("*/[0-9]*/dataset_info.json", "*/*/[0-9]*/dataset_info.json"):
        for file in sorted(data_dir.glob(pattern)):
            *parts, version = file.parent.relative_to(data_dir).parts
            there[f"{'/'.join(parts)}:{version}"] = file.parent
    fits = [full for full in there if full == name or full.startswith((f"{name}:", f"{name}/"))]
    if not fits:
        raise records_lib.DataError(
            f"data set {name!r} is not prepared in {data_dir} (prepared there: "
            f"{', '.join(there) or 'none'}); prepare it with tfds.builder({name!r}, data_dir="
            f"{str(data_dir)!r}, file_format='array_record').download_and_prepare()"
        )
    if len(fits) > 1:
        raise records_lib.DataError(
            f"data set {name!r} has several prepared versions in {data_dir}; name one of "
            f"{', '.join(fits)}"
        )
    return there[fits[0]]


def _open_split(builder, name, split, layout):
    """Random access to the examples of a split, with encoded images."""
    import tensorflow_datasets as tfds

    decoders = {key: tfds.decode.SkipDecoding() for key in layout.images}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        raise records_lib.DataError(
            f"data set {name!r} is prepared as {builder.info.file_format.value}, which has no "
            "random access; prepare it again with file_format='array_record'"
        ) from error
    except ValueError as error:
        raise records_lib.DataError(
            f"data set {name!r} has no split {split!r} with images; its splits: "
            f"{', '.join(builder.info.splits)}, and parts such as 'train[:80%]'"
        ) from error


def _read(examples, position, what):
    """One example, a dict of the data set's features."""
    try:
        return examples[position]
    except RuntimeError as error:  # from array_record: a file is missing, truncated or damaged
        raise records_lib.DataError(
            f"{what} cannot be read ({error}); {_PREPARE_AGAIN}", can_leave_out=True
        ) from error

"""Opens the source that a config's `data` block describes."""

import difflib
import pathlib
import types
from typing import Any

from detlab.data import coco, names, records, shapes, tfds, voc, wider, wrappers

KINDS = ("shapes", "voc", "coco", "wider", "tfds")

# The keys that a dict of `train_also` may set; the others concern batches, not sources.
SOURCE_KEYS = (
    "source",
    "root",
    "class_names",
    "rename_classes",
    "tfds_name",
    "train_splits",
    "train_images",
    "train_annotations",
    "train_repeat",
    "keep_empty",
    "min_side",
    "min_object",
    "exif",
)


def build(data: Any, part: str) -> Any:
    """Opens the source of `config.data` for training or evaluation.

    Training joins the block's own source with one for each dict of `train_also`, whose keys replace
    those of the block.  Each source drops the images that are not worth training on, and an epoch
    shows the others `train_repeat` times.  Evaluation uses only the block's own source, with all
    images.

    Args:
      data: the config's `data` block.
      part: "train" or "eval".
    Raises:
      DataError: a file or folder is missing, its content is unusable, or `train_also` has a key
        outside `SOURCE_KEYS` or classes that differ from those of the first source.
    """
    if part not in ("train", "eval"):
        raise ValueError(f"part {part!r} is neither 'train' nor 'eval'")
    if part == "eval":
        return _open(data, part)
    parts = []
    for block in (data, *(_changed(data, changes) for changes in data.train_also)):
        source = _open(block, part)
        if block.min_object:
            source = wrappers.SmallIgnored(source, block.min_object)
        # Every image of shapes has objects; a check would draw them all.
        keep_empty = block.keep_empty or isinstance(source, shapes.Shapes)
        source = wrappers.for_training(source, block.min_side, keep_empty)
        if data.train_also and not len(source):
            raise records.DataError(
                f"the {block.source} data in {block.root} have no usable images: "
                f"{source.problems[0]}"
            )
        parts.append(wrappers.Repeated(source, block.train_repeat))
    return wrappers.Concatenated(parts) if len(parts) > 1 else parts[0]


def _changed(data, changes):
    """The source keys of a block, with `changes`."""
    for key in changes:
        if key not in SOURCE_KEYS:
            close = difflib.get_close_matches(key, SOURCE_KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"keys: {', '.join(SOURCE_KEYS)}"
            raise records.DataError(f"config.data.train_also has the unknown key {key!r}; {hint}")
    values = {key: getattr(data, key) for key in (*SOURCE_KEYS, "skip_broken")}
    return types.SimpleNamespace(**{**values, **changes})


def _open(data, part):
    """Opens the block's own source with the classes that it asks for."""
    strict = not (data.skip_broken if part == "train" else data.eval_skip_broken)
    root = pathlib.Path(data.root)
    splits = data.train_splits if part == "train" else data.eval_splits
    rename = tuple(tuple(map(names.normal, pair)) for pair in data.rename_classes)
    # With renaming, files are opened with every class that may become one of these.
    chosen = tuple(map(names.normal, data.class_names))
    if data.source == "shapes":
        source = shapes.Shapes("train" if part == "train" else "val")
    elif data.source == "voc":
        # VOC files do not list their classes, so the names to replace are read too.
        in_files = tuple(dict.fromkeys((*(old for old, _ in rename), *chosen))) if chosen else None
        source = voc.Voc(root, splits, in_files, strict=strict, exif=data.exif)
    elif data.source == "coco":
        images = data.train_images if part == "train" else data.eval_images
        annotations = data.train_annotations if part == "train" else data.eval_annotations
        source = coco.Coco(
            root / images,
            root / annotations,
            None if rename else chosen,
            strict=strict,
            min_side=1 if part == "train" else 0,
            exif=data.exif,
        )
    elif data.source == "wider":
        source = wider.Wider(root, splits, strict=strict, exif=data.exif)
    elif data.source == "tfds" and not data.tfds_name:
        raise records.DataError(
            "config.data.tfds_name is empty; set it to a data set such as voc/2007"
        )
    elif data.source == "tfds":
        chosen_there = None if rename else chosen
        source = tfds.Tfds(
            data.tfds_name, splits, root, chosen_there, strict=strict, exif=data.exif
        )
    else:
        raise records.DataError(
            f"config.data.source is {data.source!r}; it must be {', '.join(KINDS[:-1])} or "
            f"{KINDS[-1]}"
        )
    return wrappers.choose_classes(source, chosen, rename)

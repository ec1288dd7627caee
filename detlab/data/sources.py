"""From a config's `data` block to a source."""

import pathlib

from detlab.data import coco, records, shapes, voc


def build(data, part: str):
    """The source of `config.data` for a part of the work.

    Args:
      data: the config's block.
      part: "train", without the images that are not worth training on, or "eval", with all.
    Raises:
      DataError: a file or folder is missing, or its content cannot be used.
    """
    if part not in ("train", "eval"):
        raise ValueError(f"part {part!r} is neither 'train' nor 'eval'")
    strict = not (data.skip_broken if part == "train" else data.eval_skip_broken)
    class_names = tuple(data.class_names) or None
    root = pathlib.Path(data.root)
    if data.source == "shapes":
        return shapes.Shapes("train" if part == "train" else "val")
    if data.source == "voc":
        splits = data.train_splits if part == "train" else data.eval_splits
        source = voc.Voc(root, splits, class_names, strict=strict)
    elif data.source == "coco":
        images = data.train_images if part == "train" else data.eval_images
        annotations = data.train_annotations if part == "train" else data.eval_annotations
        source = coco.Coco(
            root / images,
            root / annotations,
            class_names,
            strict=strict,
            min_side=1 if part == "train" else 0,
        )
    else:
        raise records.DataError(f"config.data.source is {data.source!r}: shapes, voc or coco.")
    return records.for_training(source, data.min_side) if part == "train" else source

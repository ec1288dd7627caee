"""What the tools that look at data share: opening a part, and choosing images and objects."""

import argparse
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from detlab import checks, data_sets, errors
from detlab import config as config_lib
from detlab.data import records as records_lib
from detlab.tools import data_flags


def config_of(args: argparse.Namespace, overrides: Mapping[str, str]) -> config_dict.ConfigDict:
    """The config of --config, or one that reads --images and --annotations as both parts.

    Raises:
      UserError: neither, or both.
    """
    files = (args.images, args.annotations)
    if args.config and any(files) or (any(files) and not all(files)):
        raise errors.UserError("--images and --annotations go together, and without --config.")
    if not args.config and not any(files):
        raise errors.UserError(
            "no data given; name them with --config, or with --images and --annotations."
        )
    config = config_lib.load(args.config or "retinanet_coco", overrides)
    if any(files):
        folder, file = files[0], os.path.abspath(files[1])
        config.data.update(source="coco", root=folder)
        for part in ("train", "eval"):
            config.data.update({f"{part}_images": ".", f"{part}_annotations": file})
    checks.check_config(config)
    return config


def parts_of(args: argparse.Namespace) -> list[str]:
    """The parts that --splits names; of --images, "eval" alone, which has all as annotated.

    Raises:
      UserError: another part than train and eval, or none.
    """
    if args.images:
        return ["eval"]
    parts = list(dict.fromkeys(part.strip() for part in args.splits.split(",") if part.strip()))
    if not parts or set(parts) - {"train", "eval"}:
        raise errors.UserError(
            f"--splits is {args.splits!r}; it must be train, eval or train,eval."
        )
    return parts


def open_part(config: config_dict.ConfigDict, part: str, whole: bool = True) -> Any:
    """The source of a part, "train" or "eval"; unusable images and objects are its problems.

    Args:
      whole: with the images and objects that training would leave out by choice, each once.
    Raises:
      UserError: the data cannot be opened or are empty.
    """
    config = config.copy_and_resolve_references()
    config.data.update(skip_broken=True, eval_skip_broken=True)
    if whole:
        unfiltered = dict(keep_empty=True, min_side=0, min_object=0, train_repeat=1)
        config.data.update(unfiltered)
        config.data.train_also = tuple(
            {**block, **{key: unfiltered[key] for key in unfiltered if key in block}}
            for block in config.data.train_also
        )
    return data_sets.open_any(config, part)


def describe(config: config_dict.ConfigDict, part: str) -> str:
    """The data of a part in a few words, for titles and the JSON."""
    data = config.data
    if data.source == "coco":
        return f"coco {pathlib.PurePath(data[f'{part}_annotations']).name}"
    if data.source == "shapes":
        return f"shapes {part}"
    return " ".join([data.tfds_name or data.source, *data[f"{part}_splits"]])


def check_choice(args: argparse.Namespace) -> None:
    """Rejects values of --count, --start and --every that are out of range."""
    for name, least in (("count", 1), ("start", 0), ("every", 1)):
        value = getattr(args, name)
        if value < least:
            raise errors.UserError(f"--{name} is {value}; it must be at least {least}.")


def label_of(name: str, class_names: Sequence[str]) -> int:
    """The label of a class.

    Raises:
      UserError: there is no such class.
    """
    if name in class_names:
        return list(class_names).index(name)
    meant = records_lib.meant_class(name, class_names, cutoff=0.6)
    hint = f"did you mean {meant}?" if meant else f"its classes: {', '.join(class_names)}."
    raise errors.UserError(f"--class: the data have no class {name!r}; {hint}")


def chosen_objects(
    objects: Mapping[str, np.ndarray], class_names: Sequence[str], args: argparse.Namespace
):
    """Which objects --class, --size and --only_ignored choose, [n] bool; without them, all.

    Args:
      objects: with `labels`, `ignore` and `area` [n].
    """
    chosen = np.ones(len(objects["labels"]), bool)
    if args.class_name:
        chosen &= objects["labels"] == label_of(args.class_name, class_names)
    if args.size:
        low, high = data_flags.SIZES[args.size]
        chosen &= (objects["area"] >= low**2) & (objects["area"] < high**2)
    if args.only_ignored:
        chosen &= objects["ignore"]
    return chosen


def is_filtered(args: argparse.Namespace) -> bool:
    """Whether objects are chosen by class, size or flag."""
    return bool(args.class_name or args.size or args.only_ignored)


def choose(source: Any, args: argparse.Namespace) -> list[int]:
    """Positions of the images that the flags choose, among the first --limit of a source.

    Raises:
      UserError: there is none.
    """
    check_choice(args)
    looked_at = range(min(len(source), args.limit or len(source)))
    positions = list(looked_at)
    if is_filtered(args):
        positions = [
            i
            for i in looked_at
            if chosen_objects(source.annotation(i), source.class_names, args).any()
        ]
    chosen = positions[args.start :: args.every][: args.count]
    if not chosen:
        raise errors.UserError(
            f"of the {len(looked_at)} images looked at, {len(positions)} have such objects, none of"
            f" them after the first {args.start}; change --class, --size, --only_ignored, --start"
            " or --limit."
        )
    return chosen


def class_and_box(record: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[dict]:
    """The objects of a record for a JSON: class, box (xyxy px) and ignore."""
    columns = (record["labels"].tolist(), record["boxes"].tolist(), record["ignore"].tolist())
    return [
        {"class": class_names[label], "box": [round(x, 3) for x in box], "ignore": ignore}
        for label, box, ignore in zip(*columns, strict=True)
    ]


def file_names(source: Any, positions: Sequence[int]) -> list[str]:
    """The stems of the images' names, as any file system takes them; may repeat."""
    paths = [pathlib.PurePath(source.name(i)) for i in positions]
    return [stem(path.stem if path.suffix else "_".join(path.parts)) for path in paths]


def stem(name: str) -> str:
    """The name with _ for what a file name may not hold."""
    return re.sub(r"[^\w.-]", "_", name)

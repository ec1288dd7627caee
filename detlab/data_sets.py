"""Opens the data that a config names and checks it against the detector."""

import os
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from detlab import contract, distributed, errors, files
from detlab.data import batch as batch_lib
from detlab.data import loader, records, settings, slots, sources, wrappers
from detlab.data import names as names_lib


def open_source(
    config: config_dict.ConfigDict, part: str, class_names: Sequence[str] | None = None
) -> Any:
    """Opens the source of a part, "train" or "eval", and prints its problems.

    Args:
      class_names: the classes of the detector, if they are known.  If the data have no others, they
        get these, in this order: a file of one part may lack a class of the other.
    Raises:
      UserError: the data cannot be opened or are empty, or their classes or the number of these are
        not the detector's.
    """
    source = open_any(config, part, class_names)
    check_class_names(class_names, source.class_names)
    _check_num_classes(source, part, contract.num_classes(config))
    report_problems(source, part)
    return source


def open_any(
    config: config_dict.ConfigDict, part: str, class_names: Sequence[str] | None = None
) -> Any:
    """The source of a part, "train" or "eval", whatever the detector; prints nothing.

    Args:
      class_names: see `open_source`.
    Raises:
      UserError: the data cannot be opened or are empty.
    """
    switch = _SWITCHES[part]
    try:
        source = sources.build(config.data, part)
        if class_names and set(source.class_names) <= set(class_names):
            source = wrappers.choose_classes(source, tuple(class_names))
    except records.DataError as error:
        text = str(error).removesuffix(".")
        if error.can_leave_out:
            text += f"; fix it, or skip unusable data with --config.data.{switch}=True"
        if str(config.data.root) in text:
            text += f" (config.data.root is {config.data.root})"
        end = "" if text.endswith("?") else "."
        raise errors.UserError(f"{part} data: {text}{end}") from error
    if not len(source):
        cause = f": {source.problems[0]}" if source.problems else ""
        raise errors.UserError(
            f"{part} data: config.data.root {config.data.root!r} has no usable images{cause}."
        )
    return source


def report_problems(source: Any, part: str) -> None:
    """Prints the first problems of a source of a part, "train" or "eval"."""
    for problem in source.problems[:_SHOWN]:
        print(f"{part} data: {problem}")
    if len(source.problems) > _SHOWN:
        print(f"{part} data: {len(source.problems) - _SHOWN} more problems not shown")


_SHOWN = 20


def _check_num_classes(source, part, expected):
    """Raises a `UserError` with the value to set if the data have another number of classes."""
    names = source.class_names
    if len(names) == expected:
        return
    count = np.zeros(len(names), np.int64)
    for i in range(len(source)):
        np.add.at(count, source.annotation(i)["labels"], 1)
    with_objects = [name for name, number in zip(names, count, strict=True) if number]
    empty = [name for name in names if name not in with_objects]
    without = f" (no objects of {', '.join(empty)})" if empty and with_objects else ""
    there = f"{len(names)} {'class' if len(names) == 1 else 'classes'}"
    remedy = f"set --config.model.num_classes={len(names)}, or"
    if len(names) < expected:
        flag = class_names_flag(names)
        remedy += f", to keep {expected}, add the classes that the data lack to {flag}"
    else:
        chosen = with_objects if empty and with_objects else names
        among = "of them:" if len(chosen) == expected else "of"
        remedy += f" keep {expected} {among} {class_names_flag(chosen)}"
    raise errors.UserError(
        f"config.model.num_classes is {expected}, but the {part} data have {there}:"
        f" {', '.join(names)}{without}; {remedy}."
    )


def class_names_flag(names: Sequence[str]) -> str:
    """The flag that chooses these classes, as it is typed in a shell."""
    return _flag("class_names", f"({','.join(map(repr, names))}{',' if len(names) == 1 else ''})")


def _flag(key, value):
    quoted = shlex.quote(value) if set(value) & set('"$`\\!') else f'"{value}"'
    return f"--config.data.{key}={quoted}"


def report_shortage(source: Any, config: config_dict.ConfigDict) -> None:
    """Prints a sentence if training images have more objects than config.data.max_boxes."""
    sentence = slots.shortage(source, settings.of(config.data, "train"), config.seed)
    if sentence:
        print(f"train data: {sentence}")


def check_files(source: Any, config: config_dict.ConfigDict, part: str) -> None:
    """Looks for the image files of a part, "train" or "eval"; prints how many do not exist.

    Each folder is listed once, which is quick on a network too; nothing is read.

    Raises:
      UserError: files are missing that the config does not pass over, or all are.
    """
    paths = [source.path(i) for i in range(len(source))] if hasattr(source, "path") else []
    paths = list(dict.fromkeys(path for path in paths if path))
    missing = files.missing(paths)
    if not missing:
        return
    switch = _SWITCHES[part]
    first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    what = f"{part} data: {len(missing)} of {len(paths)} image files do not exist: {first}"
    if any("\\" in path and os.path.exists(path.replace("\\", "/")) for path in missing[:3]):
        what += " (written on Windows: with / instead of \\ they would)"
    if len(missing) == len(paths) or not config.data[switch]:
        way = f", or pass over them with --config.data.{switch}=True"
        if len(missing) == len(paths):
            way = ", or correct the paths"
        raise errors.UserError(
            f"{what}; put them there{way} (config.data.root is {config.data.root})."
        )
    instead = "others take their place" if part == "train" else "they count as without detections"
    print(f"{what}; {instead}")


def read_some(source: Any, config: config_dict.ConfigDict, part: str, count: int = 8) -> None:
    """Reads up to `count` images of a part, "train" or "eval", from its first to its last.

    Raises:
      UserError: an image cannot be read and the config does not pass over it.
    """
    positions = sorted({round(k * (len(source) - 1) / max(count - 1, 1)) for k in range(count)})
    broken = []
    for i in positions:
        try:
            source[i]
        except records.DataError as error:
            broken.append(error)
    if broken and not config.data[_SWITCHES[part]]:
        raise errors.UserError(f"{part} data: {_with_remedy(broken[0], _SWITCHES[part])}.")
    for error in broken:
        print(f"{part} data: {error}")
    print(f"{part} data: {len(positions) - len(broken)} of {len(positions)} images tried are read")


_SWITCHES = {"train": "skip_broken", "eval": "eval_skip_broken"}  # keys of config.data


def _with_remedy(error: records.DataError, switch: str) -> str:
    """The error without its full stop, with the key that passes over it."""
    text = str(error).removesuffix(".")
    if error.can_leave_out:
        text += f"; or pass over unreadable images with --config.data.{switch}=True"
    return text


def check_same_images(**named_sources: Any) -> None:
    """Checks that all processes opened the same images in the same order."""
    if jax.process_count() > 1:  # a single process need not walk through all images
        distributed.check_same(**{name: fingerprint(s) for name, s in named_sources.items()})


def fingerprint(source: Any) -> list[int]:
    """Numbers that differ if two sources have different images or another order of images."""
    images = [(str(source.image_id(i)), *source.size(i)) for i in range(len(source))]
    return [len(source), zlib.crc32(repr(images).encode())]


def check_class_names(of_weights: Sequence[str] | None, of_data: Sequence[str]) -> None:
    """Checks that the labels 0, 1, ... mean the same classes in weights and data."""
    if not of_weights:
        return
    wanted, there = (list(map(names_lib.normal, names)) for names in (of_weights, of_data))
    if wanted == there:
        return
    others = [name for name in there if name not in wanted]
    lacking = [name for name in wanted if name not in there]
    meant = {name: records.meant_class(name, others) for name in lacking}
    pairs = [(other, name) for name, other in meant.items() if other]
    if pairs:
        remedy = f"set {_flag('rename_classes', repr(tuple(pairs)))}"
    elif len(lacking) == len(wanted):
        remedy = "evaluate it on data of its classes, or name them alike with rename_classes"
    else:
        remedy = f"set {class_names_flag(of_weights)}, the classes of the detector"
    raise errors.UserError(
        f"the detector has the classes {', '.join(of_weights)}, but the data to evaluate have"
        f" {', '.join(of_data)}; {remedy}."
    )


def user_errors(items: Iterable, part: str) -> Iterator:
    """Yields the items; raises a `UserError` for bad data or a killed worker process.

    `part` is "train" or "eval".
    """
    try:
        yield from items
    except records.DataError as error:
        raise errors.UserError(f"{_with_remedy(error, _SWITCHES[part])}.") from error
    except RuntimeError as error:  # raised by grain
        if "Worker process" not in str(error):
            raise
        raise errors.UserError(
            "a worker process that reads data was killed, perhaps because memory ran out; lower"
            " config.data.workers, or set it to 0 to read in threads."
        ) from error


def training_batches(
    source: Any, config: config_dict.ConfigDict, num_steps: int, start_step: int = 0
) -> Iterator[batch_lib.Loaded]:
    """This process's rows of the batches of steps start_step + 1 .. num_steps.

    A batch depends only on the seed and the step.
    """
    return user_errors(
        loader.train_batches(
            source,
            settings.of(config.data, "train"),
            batch_size=config.train.batch_size,
            seed=config.seed,
            num_steps=num_steps,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        "train",
    )


def evaluation_batches(source: Any, config: config_dict.ConfigDict) -> Iterator[batch_lib.Loaded]:
    """This process's share of all images, each once."""
    return user_errors(
        loader.eval_batches(
            source,
            settings.of(config.data, "eval", config.eval),
            batch_size=config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        "eval",
    )

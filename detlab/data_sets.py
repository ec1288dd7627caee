"""Opens the data that a config names and checks it against the detector."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import config_dict

from detlab import contract, distributed, errors
from detlab.data import batch as batch_lib
from detlab.data import loader, names, records, settings, sources


def open_source(config: config_dict.ConfigDict, part: str) -> Any:
    """Opens the source of a part, "train" or "eval", and prints its problems.

    Raises:
      UserError: the data cannot be opened or are empty, or their number of classes is not the
        detector's.
    """
    switch = "skip_broken" if part == "train" else "eval_skip_broken"
    try:
        source = sources.build(config.data, part)
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
    num_classes = contract.num_classes(config)
    if len(source.class_names) != num_classes:
        raise errors.UserError(
            f"config.model.num_classes is {num_classes}, but the {part} data have"
            f" {len(source.class_names)} classes: {', '.join(source.class_names)};"
            " set it to their number."
        )
    for problem in source.problems[:5]:
        print(f"{part} data: {problem}")
    if len(source.problems) > 5:
        print(f"{part} data: {len(source.problems) - 5} more problems not shown")
    return source


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
    if of_weights and list(map(names.normal, of_weights)) != list(map(names.normal, of_data)):
        raise errors.UserError(
            f"the detector has the classes {', '.join(of_weights)}, but the data to evaluate have"
            f" {', '.join(of_data)}; set config.data.class_names to the classes of the detector."
        )


def user_errors(items: Iterable) -> Iterator:
    """Yields the items; raises a `UserError` for bad data or a killed worker process."""
    try:
        yield from items
    except records.DataError as error:
        raise errors.UserError(str(error)) from error
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
        )
    )


def evaluation_batches(source: Any, config: config_dict.ConfigDict) -> Iterator[batch_lib.Loaded]:
    """This process's share of all images, each once."""
    return user_errors(
        loader.eval_batches(
            source,
            settings.of(config.data, "eval"),
            batch_size=config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )

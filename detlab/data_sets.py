"""The data that a config names, opened and checked against its detector, for the programs."""

import zlib
from collections.abc import Iterable, Iterator, Sequence

import jax

from detlab import contract, distributed, errors
from detlab.data import batch as batch_lib
from detlab.data import loader, records, settings, sources


def open_source(config, part: str):
    """The source of a part, "train" or "eval"; prints what was left out of it."""
    switch = "skip_broken" if part == "train" else "eval_skip_broken"
    try:
        source = sources.build(config.data, part)
    except records.DataError as error:
        text = str(error).removesuffix(".")
        if error.can_leave_out:
            text += f"; correct it, or leave such out with --config.data.{switch}=True"
        if str(config.data.root) in text:
            text += f" (config.data.root is {config.data.root})"
        end = "" if text.endswith("?") else "."
        raise errors.UserError(f"{part} data: {text}{end}") from error
    if not len(source):
        cause = f", because {source.problems[0]}" if source.problems else ""
        raise errors.UserError(
            f"the {part} part of the data in config.data.root {config.data.root!r} has no usable"
            f" images{cause}."
        )
    num_classes = contract.num_classes(config)
    if len(source.class_names) != num_classes:
        raise errors.UserError(
            f"config.model.num_classes is {num_classes}, but the {part} data have"
            f" {len(source.class_names)} classes: {', '.join(source.class_names)}."
        )
    for problem in source.problems[:5]:
        print(f"{part} data: {problem}")
    if len(source.problems) > 5:
        print(f"{part} data: and {len(source.problems) - 5} more such problems")
    return source


def check_same_images(**named_sources) -> None:
    """Every process must have opened the same images, in the same order."""
    if jax.process_count() > 1:  # else there is nothing to walk through all images for
        distributed.check_same(**{name: fingerprint(s) for name, s in named_sources.items()})


def fingerprint(source) -> list[int]:
    """Numbers that differ where two sources have other images, or in another order."""
    images = [(str(source.image_id(i)), *source.size(i)) for i in range(len(source))]
    return [len(source), zlib.crc32(repr(images).encode())]


def check_class_names(of_weights: Sequence[str] | None, of_data: Sequence[str]) -> None:
    """Weights and data must mean the same by label 0, 1, ..."""
    if of_weights and list(of_weights) != list(of_data):
        raise errors.UserError(
            f"the detector learns or knows the classes {', '.join(of_weights)}, and the data to"
            f" evaluate have {', '.join(of_data)}; set config.data.class_names to the detector's."
        )


def user_errors(items: Iterable) -> Iterator:
    """The items; bad data met on the way ends the program with its sentence."""
    try:
        yield from items
    except records.DataError as error:
        raise errors.UserError(str(error)) from error
    except RuntimeError as error:  # of grain
        if "Worker process" not in str(error):
            raise
        raise errors.UserError(
            "a process that reads data was ended from outside, perhaps for want of memory: give"
            " fewer with config.data.workers, or 0 to read in threads."
        ) from error


def training_batches(
    source, config, num_steps: int, start_step: int = 0
) -> Iterator[batch_lib.Loaded]:
    """This process's part of the batches of steps start_step + 1 .. num_steps.

    They are a function of the seed and the step alone.
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


def evaluation_batches(source, config) -> Iterator[batch_lib.Loaded]:
    """This process's part of all images, once."""
    return user_errors(
        loader.eval_batches(
            source,
            settings.of(config.data, "eval"),
            batch_size=config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )

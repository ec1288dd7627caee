"""What the command lines train, eval and demo share."""

import argparse
import os
import pathlib
import sys
import zlib
from typing import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import tqdm

from detlab import checkpoint
from detlab import checks
from detlab import config as config_lib
from detlab import contract
from detlab import distributed
from detlab import errors
from detlab import sharding
from detlab.data import records
from detlab.data import sources


def load_model(args: argparse.Namespace, overrides: Mapping[str, str]):
    """(config, weights) of --workdir, or of --config and --checkpoint."""
    if args.workdir and args.config:
        raise errors.UserError("give either --workdir or --config with --checkpoint, not both.")
    if args.workdir:
        weights = checkpoint.load_weights(args.workdir, args.checkpoint or "best")
        if "config" not in weights.info:
            raise errors.UserError(
                f"{weights.path} was not written by training; name its config with --config and"
                " the folder with --checkpoint."
            )
        config = config_lib.from_json(weights.info["config"])
        for key, text in overrides.items():
            config_lib.override(config, key, text)
    elif args.config and args.checkpoint:
        config = config_lib.load(args.config, overrides)
        weights = checkpoint.load_weights(args.checkpoint)
    else:
        raise errors.UserError("give --workdir of a run, or --config together with --checkpoint.")
    checks.check_config(config)
    use_compilation_cache(config)
    return config, weights


def use_compilation_cache(config) -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick."""
    if not config.compilation_cache or jax.config.jax_compilation_cache_dir:
        return
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "detlab" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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


def check_batch_size(key: str, size: int, parts: int = 1) -> None:
    """Every device takes the same number of images of a batch, or of each of its parts."""
    devices = jax.device_count()
    if size % (devices * parts):
        times = f", times config.train.accumulate = {parts}" if parts > 1 else ""
        raise errors.UserError(
            f"config.{key} is {size}; it must be a multiple of the {devices} devices{times}."
        )


def resize_rule(data, use: str) -> dict[str, str | tuple[int, int]]:
    """How images get onto a canvas: `resize`, `rounding` and `shrink` of `loader.train_batches`.

    Args:
      data: the config's block.
      use: "train", "eval" or "demo".
    """
    return dict(
        resize=tuple(data.size_limits) or data.resize,
        rounding=data.demo_rounding if use == "demo" else data.rounding,
        shrink=data.eval_shrink if use == "eval" else "linear",
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


def check_class_names(of_weights: Sequence[str] | None, of_data: Sequence[str]) -> None:
    """Weights and data must mean the same by label 0, 1, ..."""
    if of_weights and list(of_weights) != list(of_data):
        raise errors.UserError(
            f"the detector learns or knows the classes {', '.join(of_weights)}, and the data to"
            f" evaluate have {', '.join(of_data)}; set config.data.class_names to the detector's."
        )


def fit_weights(detector: contract.Detector, config, weights: checkpoint.Weights, mesh):
    """(params, state) of the whole detector on the devices; nothing may be missing."""
    params, state = jax.eval_shape(detector.init, jax.random.key(0), example_images(config))
    merged = checkpoint.merge(params, state, weights, skip=None)
    return jax.device_put((merged.params, merged.state), sharding.replicated(mesh))


def example_images(config) -> jax.Array:
    """One empty canvas: parameters do not depend on its size."""
    return jnp.zeros((1, *config.data.canvases[0], 3), jnp.uint8)


def progress_bar(total: int, what: str, unit: str, **options) -> tqdm.tqdm:
    """A progress bar, of the first process; into a file it writes a line now and then."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    hidden = jax.process_index() > 0
    return tqdm.tqdm(
        total=total, desc=what, unit=unit, mininterval=interval, disable=hidden, **options
    )


def report_skipped(sentences: Iterable[str]) -> None:
    """Says which images were left out; the output of other processes than the first is stderr."""
    file = sys.stdout if jax.process_index() == 0 else sys.stderr
    for sentence in sentences:
        tqdm.tqdm.write(f"skipped: {sentence}", file=file)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all, making its folder."""
    path = pathlib.Path(path)
    special = path.exists() and not path.is_file()  # /dev/stdout cannot be replaced
    temporary = path if special else path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        if not special:
            temporary.replace(path)
    except OSError as error:
        raise errors.UserError(f"cannot write {path}: {error.strerror or error}.") from error

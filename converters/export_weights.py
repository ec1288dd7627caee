"""Weights folder -> foreign weights: `python -m converters.convert --reverse`."""

import argparse
from collections.abc import Mapping

from detlab import config as config_lib
from detlab import errors
from detlab.converters import family as family_lib
from detlab.converters import mapping
from detlab.run import checkpoint


def run(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Writes a checkpoint's weights with the names and layouts of its family."""
    if flags.output.suffix not in {s for family in family_lib.every() for s in family.suffixes}:
        raise errors.UserError(
            f"--output {flags.output} must end with .pth, .pt or .safetensors, or with .weights"
            " for detector darknet."
        )
    if flags.output.exists():
        raise errors.UserError(f"--output {flags.output} already exists; choose another name.")
    weights = checkpoint.load_weights(flags.input, flags.checkpoint)
    if flags.config:
        config = config_lib.load(flags.config, overrides)
    elif "config" in weights.info:
        config = config_lib.from_json(weights.info["config"])
    else:
        raise errors.UserError(f"{weights.path} has no config; name its experiment with --config.")
    family = family_lib.of_detector(config.detector)
    if flags.output.suffix not in family.suffixes:
        raise errors.UserError(
            f"{weights.path} holds detector {config.detector}, which cannot be written as --output"
            f" {flags.output}: detector darknet is written as .weights with its .cfg beside it, all"
            " others as .pth, .pt or .safetensors."
        )
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    try:
        told = family.write(flags, config, weights, leaves)
    except mapping.ConversionError as error:
        raise errors.UserError(f"{weights.path}: {error}") from error
    except OSError as error:
        raise errors.UserError(
            f"{flags.output} cannot be written: {error.strerror or error}."
        ) from error
    print(told)

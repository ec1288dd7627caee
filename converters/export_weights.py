"""A weights folder -> foreign weights: the work of `python -m converters.convert --reverse`."""

import argparse
from collections.abc import Mapping

from detlab import config as config_lib
from detlab import errors
from detlab.converters import family as family_lib
from detlab.converters import mapping
from detlab.run import checkpoint


def run(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Writes a checkpoint's weights under the names and in the layouts of their family."""
    if flags.output.suffix not in {s for family in family_lib.every() for s in family.suffixes}:
        raise errors.UserError(
            f"--output {flags.output} must end with .pth, .pt or .safetensors, or with .weights for"
            " detector darknet."
        )
    if flags.output.exists():
        raise errors.UserError(f"{flags.output} exists already; name a new file.")
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
            f"{weights.path} is of detector {config.detector}, and --output {flags.output};"
            " darknet's is written as .weights, with its .cfg beside it, and no other."
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

"""YOLOv5, whose files determine their network; see `tables.yolov5`."""

import argparse
import pathlib
from collections.abc import Mapping

from ml_collections import config_dict

from detlab import contract, errors
from detlab.converters import family, mapping, named, sources
from detlab.converters.readers import contents
from detlab.converters.tables import yolov5 as tables


def table(source: sources.Source, config: config_dict.ConfigDict, bgr: bool) -> mapping.Table:
    """The table of the config's network."""
    if bgr:
        raise errors.UserError(f"remove --bgr: {source.description} takes RGB images.")
    return source.table(config.model)


def fill_in(
    path: pathlib.Path,
    file: contents.Contents,
    config: config_dict.ConfigDict,
    flags: argparse.Namespace,
    overrides: Mapping[str, str],
) -> None:
    """Sets the detector's fields from the file; those that it does not determine are assumed.

    Raises:
      UserError: the command line contradicts the file, or the number of classes differs.
    """
    try:
        found = tables.fields(file)
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error}.") from error
    for name, value in found.certain.items():
        now = contract.field(config, name)
        if f"model.{name}" in overrides and now != value:
            raise errors.UserError(
                f"--config.model.{name} is {now!r}, but the network in {path} has {value!r}; remove"
                " the flag."
            )
    expected = contract.num_classes(config)
    if flags.follow_classes:
        config.model.num_classes = found.num_classes
    elif not flags.reset_classes and found.num_classes != expected:
        raise errors.UserError(
            f"{path} predicts {found.num_classes} classes, but config.model.num_classes is"
            f" {expected}; add --config.model.num_classes={found.num_classes}, or --reset_classes"
            " to train on other classes."
        )
    assumed = {k: v for k, v in found.assumed.items() if f"model.{k}" not in overrides}
    fields = {**found.certain, **assumed}
    changed = {k: v for k, v in fields.items() if contract.field(config, k) != v}
    config.model.update(changed)
    _set_rectangles(config, overrides)

    def listed(values):
        return ", ".join(f"{name} {value!r}" for name, value in values.items())

    if changed:
        print(f"set from {path}: {listed(changed)}")
    if assumed:
        print(f"assumed, as {path} does not contain it: {listed(assumed)}")


def _set_rectangles(config: config_dict.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Makes the letterboxes of the reference fit the network, unless the command line sets them.

    Their sides are multiples of the coarsest stride; of 64 px in detect.py of release 3.0.
    """
    stride = 8 * 2 ** (len(contract.field(config, "repeats")) - 2)
    old = contract.field(config, "block") == "csp"
    for block, side in (("eval", stride), ("predict", 64 if old else stride)):
        if config[block].rectangles and f"{block}.rectangles" not in overrides:
            config[block].rectangles = side


FAMILY = family.Family(
    "yolov5",
    named.read,
    named.write,
    named.SUFFIXES,
    flags=named.FLAGS,
    table=table,
    fill_in=fill_in,
    buffers=lambda config: tables.buffers(config.model),
)

"""Darknet's `.weights` files, which have no names: a cfg says what the values are.

The cfg comes from --cfg or from the config.  A file that is converted and written back has the same
bytes, header included.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from detlab import contract, errors
from detlab import files as files_lib
from detlab.converters import family, mapping, target
from detlab.converters.readers import contents
from detlab.converters.readers import darknet as reader
from detlab.converters.tables import darknet as tables
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks
from detlab.detectors import darknet as detector
from detlab.run import checkpoint


def read(
    path: pathlib.Path,
    config: config_dict.ConfigDict,
    flags: argparse.Namespace,
    overrides: Mapping[str, str],
) -> family.Foreign:
    """Reads all layers of a file, or its first ones; --cfg sets the config's network."""
    if config.detector != "darknet":
        raise errors.UserError(
            f"{path} is a darknet .weights file, but --config {flags.config} has detector"
            f" {config.detector}; choose an experiment with detector darknet."
        )
    if flags.cfg:
        network = darknet_cfg.read(flags.cfg)
        config.model.cfg = darknet_cfg.format(network)
        config.data.canvases = ((network.net.height, network.net.width),)
        config.data.multiscale_canvases = ()
        if not flags.reset_classes:
            config.model.num_classes = network.layers[networks.heads(network)[-1]].classes
    else:
        network = networks.resolve(contract.field(config, "cfg"))
        if not flags.reset_classes:
            network = networks.with_classes(network, contract.num_classes(config))
    header, tensors = reader.read(path, network)
    layers = {int(name.partition(".")[0]) for name in tensors}
    names = ()
    if flags.names and not flags.reset_classes:
        names = _class_names(flags.names, contract.num_classes(config))
    return family.Foreign(
        tensors,
        tables.table(network, max(layers) + 1),
        names,
        {"header": header._asdict()},
        f"{len(tensors)} tensors of {len(layers)} layers",
    )


def _class_names(path: str, count: int) -> tuple[str, ...]:
    """The class names in a text file, one per line."""
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"--names {path} cannot be read: {error}.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise errors.UserError(
            f"--names {path} has {len(names)} names, but the network has {count} classes; give one"
            " name per line."
        )
    return contents.as_class_names(names)


def write(
    flags: argparse.Namespace,
    config: config_dict.ConfigDict,
    weights: checkpoint.Weights,
    leaves: Mapping[str, Any],
) -> str:
    """Writes `.weights` with a `.cfg` beside it; the header is the original file's, if any."""
    output, cfg = flags.output, flags.output.with_suffix(".cfg")
    if cfg.exists():
        raise errors.UserError(f"{cfg} already exists; choose another name for --output.")
    fields = {
        k: v for k, v in config.model.items() if k in ("cfg", "num_classes", "width_multiple")
    }
    network = detector.Darknet(**fields).network()
    missing = [path for path in target.shapes(config) if path not in leaves]
    if missing:
        raise errors.UserError(
            f"{weights.path} lacks {checkpoint.listed(missing)}; only a complete network can be"
            " written."
        )
    tensors = mapping.reverse(mapping.nest(leaves), tables.table(network))
    header = reader.Header(**weights.info.get("converted_from", {}).get("header", {}))
    output.parent.mkdir(parents=True, exist_ok=True)
    reader.write(output, network, reader.Weights(header, tensors))
    files_lib.write_text(cfg, darknet_cfg.format(network))
    return f"wrote {len(tensors)} tensors from {weights.path} to {output}, their network to {cfg}"


FAMILY = family.Family(
    "darknet",
    read,
    write,
    (".weights",),
    files="a darknet .weights file",
    knows=contents.is_darknet,
    detector="darknet",
    flags=("cfg", "names"),
)

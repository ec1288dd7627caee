"""Darknet's `.weights` files, which have no names: a cfg says what the values are.

The cfg comes from --cfg or from the config.  A file that is converted and written back has the same
bytes, header included.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from detlab import contract, errors, text
from detlab import files as files_lib
from detlab.converters import family, mapping, target
from detlab.converters.readers import class_names, contents
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
        networks.check_channels(network)
        classes = network.layers[networks.heads(network)[-1]].classes
        _check_overrides(config, flags, overrides, classes)
        for told in filter(None, (darknet_cfg.repeated(network), darknet_cfg.misspelled(network))):
            print(f"{told}.")
        config.model.cfg = darknet_cfg.format(network)
        _set_canvas(config, network)
        _set_resize(config, network, overrides)
        if not flags.reset_classes:
            config.model.num_classes = classes
    else:
        network = _without_cfg(path, config, flags, overrides)
    header, tensors = reader.read(path, network)
    layers = {int(name.partition(".")[0]) for name in tensors}
    names = ()
    if flags.names and not flags.reset_classes:
        names = class_names.read(flags.names, contract.num_classes(config))
    return family.Foreign(
        tensors | tables.counts(network, header.seen),
        tables.table(network, max(layers) + 1),
        names,
        {"header": header._asdict()},
        f"{len(tensors)} tensors of {len(layers)} layers",
    )


def _check_overrides(
    config: config_dict.ConfigDict,
    flags: argparse.Namespace,
    overrides: Mapping[str, str],
    classes: int,
) -> None:
    """Rejects values of the command line that --cfg would replace."""
    if "model.cfg" in overrides:
        raise errors.UserError("--cfg and --config.model.cfg both name a network; remove one.")
    given = contract.num_classes(config)
    if "model.num_classes" in overrides and given != classes and not flags.reset_classes:
        raise errors.UserError(
            f"--config.model.num_classes is {given}, but {flags.cfg} has classes={classes}; remove"
            " the flag, or add --reset_classes to train on other classes."
        )


def _without_cfg(
    path: pathlib.Path,
    config: config_dict.ConfigDict,
    flags: argparse.Namespace,
    overrides: Mapping[str, str],
) -> darknet_cfg.Network:
    """The config's network, or the only standard one that has exactly the file's values.

    Raises:
      UserError: neither has as many values, or --config.model.num_classes contradicts the file.
    """
    wanted = contract.num_classes(config)
    network = networks.resolve(contract.field(config, "cfg"))
    if not flags.reset_classes:
        network = networks.with_classes(network, wanted)
    count, part = reader.num_values(path), reader.named_layers(path)
    if part is not None and part > len(network.layers):
        expected = -1  # no such layers
    else:
        expected = reader.num_floats(network, part)
    if count == expected:
        return network
    found = reader.standard_that_fit(count, part)
    known = " or ".join(f"{name} with {classes} classes" for name, classes in found.items())
    if len(found) != 1 or "model.cfg" in overrides or network.name not in networks.STANDARD:
        classes = network.layers[networks.heads(network)[-1]].classes
        differs = (
            f"has {expected}, {abs(expected - count)} {'more' if expected > count else 'fewer'}"
        )
        if expected < 0:
            differs = f"has only {len(network.layers)} layers"
        fits, remedy = "", "name the network of the file with --cfg FILE.cfg"
        if found:
            fits = f", and darknet's {known} has exactly as many"
        elif part is None and (layers := reader.layers_that_fit(network, count)):
            fits = f", and its first {layers} layers have exactly as many"
            remedy += f", or call the file NAME.conv.{layers} if it holds only these"
        elif expected > count:
            remedy += ", or copy the file again if it is cut short"
        raise errors.UserError(
            f"{path} holds {count} values, but {network.name} with {classes} classes, the network"
            f" of --config {flags.config}, {differs}{fits}; {remedy}."
        )
    ((name, classes),) = found.items()
    guessed = networks.resolve(name)
    if not flags.reset_classes:
        if "model.num_classes" in overrides and classes != wanted:
            raise errors.UserError(
                f"{path} fits {known}, but --config.model.num_classes is {wanted}; remove the flag,"
                " or add --reset_classes to train on other classes."
            )
        config.model.num_classes = classes
    if name != network.name:
        config.model.cfg = name
        _set_canvas(config, guessed)
    net = guessed.net
    print(
        f"assumed, as there is no --cfg: {path} is {known}, which has exactly its {count} values,"
        f" and has the published anchors and input of {net.width}x{net.height} px; add --cfg"
        " FILE.cfg if its own differ."
    )
    return networks.with_classes(guessed, classes)


def _set_canvas(config: config_dict.ConfigDict, network: darknet_cfg.Network) -> None:
    """Makes the network's own input size the only one."""
    config.data.canvases = ((network.net.height, network.net.width),)
    config.data.multiscale_canvases = ()


def _set_resize(
    config: config_dict.ConfigDict, network: darknet_cfg.Network, overrides: Mapping[str, str]
) -> None:
    """Letterboxes images if the cfg does, unless the command line says otherwise."""
    keys = dict(resize="letterbox", rounding="whole", demo_rounding="whole")
    if not network.net.letter_box or "data.resize" in overrides:
        return
    config.data.update({k: v for k, v in keys.items() if f"data.{k}" not in overrides})
    print(
        f"{network.name} has letter_box=1: training, evaluation and demo letterbox images"
        " (config.data.resize)."
    )


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
            f"{weights.path} lacks {text.listed(missing, checkpoint.LISTED)}; only a complete"
            " network can be written."
        )
    tensors = mapping.reverse(mapping.nest(leaves), tables.table(network))
    tensors.pop("seen", None)  # the header says it
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

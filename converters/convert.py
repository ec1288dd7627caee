"""Weights of other code bases as a detlab weights folder, and back.

    python -m converters.convert --source torchvision --config experiments/retinanet_voc.py \\
        --input resnet50-0676ba61.pth --output weights/resnet50_torchvision
    python -m converters.convert --reverse --input runs/retinanet_voc --output retinanet.pth
    python -m converters.convert --inspect FILE

The folder is what `config.init_from`, eval and demo read; its `report.json` says what became of
every tensor of the file and every leaf of the detector.  A torchvision file fills the backbone
alone, an mmdet file the whole detector, and a yolov5 file decides its size and release too.
`--input` may be a URL.
"""

import argparse
import collections
import pathlib
from typing import Mapping, Sequence

from detlab import cli
from detlab import config as config_lib
from detlab.converters import flags as flags_lib

if __name__ == "__main__":
    cli.answer_first(flags_lib.convert(__doc__))  # --help needs no import below

import jax
import jax.numpy as jnp

from detlab import checks
from detlab import contract
from detlab import errors
from detlab import files as files_lib
from detlab.converters import download
from detlab.converters import inspect_file
from detlab.converters import mapping
from detlab.converters import sources
from detlab.converters.readers import contents
from detlab.converters.readers import darknet as darknet_reader
from detlab.converters.readers import files
from detlab.converters.tables import darknet as darknet_table
from detlab.converters.writers import safetensors_file
from detlab.converters.writers import torch_file
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks
from detlab.detectors import darknet
from detlab.run import checkpoint

SOURCES = sources.collect()
DARKNET = "darknet"  # whose files have no names: their tables follow from a cfg


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    parser = flags_lib.convert(__doc__)
    flags, overrides = cli.parse(arguments, parser)
    mode = "--inspect" if flags.inspect else "--reverse" if flags.reverse else "--input"
    given = {name for name, value in vars(flags).items() if value != parser.get_default(name)}
    _check_flags(mode, given, overrides)
    if mode == "--inspect":
        network = darknet_cfg.read(flags.cfg) if flags.cfg else None
        print(inspect_file.describe(_local(flags.inspect, flags.sha256), network))
    elif mode == "--reverse":
        write_foreign(flags, overrides)
    else:
        convert(flags, overrides)


# Flags of each mode: those that it needs, and those that it may have besides.
_MODES = {
    "--inspect": (("inspect",), ("cfg", "sha256")),
    "--reverse": (("input", "output"), ("reverse", "source", "config", "checkpoint", "bgr")),
    "--input": (
        ("input", "output", "config"),
        ("source", "sha256", "bgr", "reset_classes", "cfg", "names"),
    ),
}


def _check_flags(mode: str, given: set[str], overrides: Mapping[str, str]) -> None:
    """Refuses what a mode lacks, and what it would ignore."""
    needed, optional = _MODES[mode]
    for name in needed:
        if name not in given:
            raise errors.UserError(
                f"--{name} is missing: give --input FILE, --output FOLDER and --config; or"
                " --reverse with --input and --output; or --inspect FILE."
            )
    for name in sorted(given - {*needed, *optional}):
        raise errors.UserError(f"--{name} does not go with {mode}.")
    if overrides and "config" not in given:
        raise errors.UserError(f"--config.{next(iter(overrides))} needs --config.")


def _local(file: str, sha256: str) -> pathlib.Path:
    """The path of a file, which is downloaded first if it is a URL."""
    if download.is_url(file):
        return download.fetch(file, sha256)
    if sha256:
        raise errors.UserError("--sha256 goes with a URL; a file that is here is read as it is.")
    return pathlib.Path(file)


# ------------------------------------------------------------------------------------------------
# Foreign weights -> a weights folder


def convert(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Writes the folder, and prints what became of every tensor and leaf."""
    config = config_lib.load(flags.config, overrides)
    checks.check_config(config)
    _check_output(flags.output)
    path = _local(flags.input, flags.sha256)
    if _is_darknet(flags, path):
        _convert_darknet(flags, config, path)
        return
    for flag in ("cfg", "names"):
        if getattr(flags, flag):
            raise errors.UserError(
                f"--{flag} goes with a darknet .weights file, and {path} is none."
            )
    file = files.read(path)
    source = _source(flags.source, path, file.tensors, flags.config, config.detector)
    _check_channel_order(path, file, flags.bgr)
    _check_style(config, flags.bgr)
    if isinstance(source.table, sources.Networks):
        _fill_in(config, overrides, source.table, path, file, flags.reset_classes)
    table = _table_of(source, config, flags.bgr)
    if flags.reset_classes and not table.class_leaves:
        raise errors.UserError(
            f"--reset_classes does nothing here: of {source.description} the class layers are left"
            " out always."
        )
    class_names = () if flags.reset_classes else _class_names(path, file, config)
    try:
        tree, report = mapping.convert(
            file.tensors, table, target_shapes(config), flags.reset_classes
        )
    except mapping.ConversionError as error:
        raise errors.UserError(f"{path} and {flags.config}: {error}") from error
    origin = {"file": path.name, "table": table.name, "bgr": flags.bgr}
    _save(flags.output, config, table, tree, report, origin, class_names)
    counts = collections.Counter(row.status for row in report)
    print(f"{counts['matched']} tensors of {path} are in {flags.output}")


def _table_of(source: sources.Source, config, bgr: bool) -> mapping.Table:
    if not isinstance(source.table, sources.Networks):
        return source.table(bgr)
    if bgr:
        raise errors.UserError(f"--bgr does not go with {source.description}: all are of RGB.")
    return source.table.table_of(config.model)


def _fill_in(config, overrides, networks, path, file: contents.Contents, reset: bool) -> None:
    """Sets the fields of the detector that the file decides; what it does not tell is assumed.

    Raises:
      UserError: the command line says another value, or the file has other classes.
    """
    try:
        found = networks.fields(file)
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error}.") from error
    for name, value in found.certain.items():
        now = contract.field(config, name)
        if f"model.{name}" in overrides and now != value:
            raise errors.UserError(
                f"--config.model.{name} is {now!r}, and the network of {path} has {value!r}; leave"
                " it out."
            )
    expected = contract.num_classes(config)
    if not reset and found.num_classes != expected:
        raise errors.UserError(
            f"{path} predicts {found.num_classes} classes and config.model.num_classes is"
            f" {expected}; add --config.model.num_classes={found.num_classes}, or, to train on"
            " other classes, --reset_classes."
        )
    assumed = {k: v for k, v in found.assumed.items() if f"model.{k}" not in overrides}
    fields = {**found.certain, **assumed}
    changed = {k: v for k, v in fields.items() if contract.field(config, k) != v}
    config.model.update(changed)

    def listed(values):
        return ", ".join(f"{name} {value!r}" for name, value in values.items())

    if changed:
        print(f"set for the network of {path}: {listed(changed)}")
    if assumed:
        print(f"assumed, as {path} does not tell: {listed(assumed)}")


def _save(output: pathlib.Path, config, table, tree, report, origin: dict, class_names) -> None:
    """Writes the weights folder with its report, and prints that."""
    params = tree.pop("params")
    matched = [row.target for row in report if row.status == "matched"]
    info = {
        "config": config_lib.to_json(config),
        "converted_from": origin,
        # What training may start from, see `checkpoint.may_differ`.
        "subtrees": list(table.subtrees),
        "anew": [row.target for row in report if row.status == mapping.ANEW],
        "num_classes": contract.num_classes(config),
        "class_leaves": [p for p in matched if mapping.matches_any(table.class_leaves, p)],
    }
    if class_names:
        info["class_names"] = list(class_names)
    try:
        checkpoint.save_weights(output, params, tree, info)
    except OSError as error:
        raise errors.UserError(f"{output} cannot be written: {error.strerror or error}.") from error
    rows = [row._asdict() for row in report]
    files_lib.write_json(output / "report.json", {**origin, "rows": rows})
    print(mapping.format_report(report))


def _is_darknet(flags: argparse.Namespace, path: pathlib.Path) -> bool:
    """Whether a file is one of darknet's, or is to be taken for one."""
    if flags.source != "auto":
        return flags.source == DARKNET
    with contents.reading(path, "weight file", contents.ReadError), path.open("rb") as file:
        head = file.read(512)
    return contents.looks_like(head) == "a darknet .weights file"


def _convert_darknet(flags: argparse.Namespace, config, path: pathlib.Path) -> None:
    """From a `.weights` file of the network that --cfg or the config says."""
    if config.detector != "darknet":
        raise errors.UserError(
            f"a darknet .weights file fits detector darknet only, and {flags.config} is of"
            f" {config.detector}."
        )
    num_classes = contract.num_classes(config)
    if flags.cfg:
        network = darknet_cfg.read(flags.cfg)
        config.model.cfg = darknet_cfg.format(network)
        config.data.canvases = ((network.net.height, network.net.width),)
        config.data.multiscale_canvases = ()
        last = network.layers[darknet_networks.heads(network)[-1]]
        if not flags.reset_classes:
            config.model.num_classes = num_classes = last.classes
    else:
        network = darknet_networks.resolve(contract.field(config, "cfg"))
        if not flags.reset_classes:
            network = darknet_networks.with_classes(network, num_classes)
    weights = darknet_reader.read(path, network)
    layers = {int(name.partition(".")[0]) for name in weights.tensors}
    table = darknet_table.table(network, max(layers) + 1)
    try:
        tree, report = mapping.convert(
            weights.tensors, table, target_shapes(config), flags.reset_classes
        )
    except mapping.ConversionError as error:
        raise errors.UserError(f"{path} and {flags.config}: {error}") from error
    names = _names(flags.names, num_classes) if flags.names and not flags.reset_classes else ()
    origin = {"file": path.name, "table": table.name, "header": weights.header._asdict()}
    _save(flags.output, config, table, tree, report, origin, names)
    print(f"{len(weights.tensors)} tensors of {len(layers)} layers of {path} are in {flags.output}")


def _names(path: str, count: int) -> tuple[str, ...]:
    """The class names of a text file, a line each."""
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"--names {path} cannot be read: {error}.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise errors.UserError(f"--names {path} has {len(names)} names, and the network {count}.")
    return contents.as_class_names(names)


def target_shapes(config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all leaves of the configured detector; no model runs."""
    detector = contract.build(config)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    params, state = jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)
    return {path: leaf.shape for path, leaf in mapping.flatten({"params": params, **state}).items()}


def _check_output(output: pathlib.Path) -> None:
    """Finds out before the work whether the folder can be made."""
    if output.exists():
        raise errors.UserError(f"{output} exists already; give a new folder or remove it first.")
    try:
        output.mkdir(parents=True)
        output.rmdir()  # the checkpoint writer makes it in one step when all is written
    except OSError as error:
        raise errors.UserError(f"{output} cannot be made: {error.strerror or error}.") from error


def _source(
    family: str, path: pathlib.Path, names: Mapping, config_name: str, detector: str
) -> sources.Source:
    """The kind of the file: of the family, known by its names, and for the detector."""
    wanted = [source for source in SOURCES if family in ("auto", source.family)]
    known = sources.fitting(wanted, names)
    if not known:
        is_not = _either(_sources_of(family, detector))
        other = sources.fitting(SOURCES, names)
        looks = f"it looks like {_either(other)}" if other else "its names begin with "
        looks += "" if other else contents.printable(", ".join(list(names)[:4]))
        raise errors.UserError(f"{path} is not {is_not}; {looks}.")
    chosen = [source for source in known if source.detector in (None, detector)]
    if not chosen:
        only = " or ".join(sorted({source.detector for source in known}))
        raise errors.UserError(
            f"{_either(known)} fits detector {only} only, and {config_name} is of {detector}."
        )
    if len(chosen) > 1:
        raise errors.UserError(f"{path} may be {_either(chosen)}; say which with --source.")
    return chosen[0]


def _sources_of(family: str, detector: str) -> list[sources.Source]:
    """The sources that the detector may have."""
    found = [
        source
        for source in SOURCES
        if family in ("auto", source.family) and source.detector in (None, detector)
    ]
    if not found:
        raise errors.UserError(f"--source {family} has no table for detector {detector}.")
    return found


def _either(known: list[sources.Source]) -> str:
    return " or ".join(sorted({source.description for source in known}))


def _check_channel_order(path: pathlib.Path, file: contents.Contents, bgr: bool) -> None:
    """mmdet stores its configuration as text, with `to_rgb=False` (2.x) or `bgr_to_rgb=False`."""
    inner = file.meta.get("meta")
    inner = inner if isinstance(inner, Mapping) else {}
    text = next((inner[key] for key in ("config", "cfg") if isinstance(inner.get(key), str)), "")
    if not bgr and "to_rgb=False" in text.replace(" ", ""):
        raise errors.UserError(
            f"{path} was trained on BGR images, as the configuration in it says; convert it with"
            " --bgr, and set config.model.style, pixel_mean and pixel_std (in RGB order) to match."
        )


def _check_style(config, bgr: bool) -> None:
    """Caffe's ResNets, with their stride on another convolution, are always of BGR images."""
    style = contract.field(config, "style")
    if style is not None and (style == "caffe") != bgr:
        raise errors.UserError(
            f"config.model.style is {style!r}, {'which does not go' if bgr else 'which goes'} with"
            " --bgr: the networks of caffe's style were trained on BGR images, and those alone."
        )


def _class_names(path: pathlib.Path, file: contents.Contents, config) -> tuple[str, ...]:
    """The file's names, if it has any; as many as the detector has classes."""
    names = file.class_names or ()
    expected = contract.num_classes(config)
    if names and len(names) != expected:
        raise errors.UserError(
            f"{path} knows {len(names)} classes and config.model.num_classes is {expected};"
            f" add --config.model.num_classes={len(names)}, or, to train on other classes,"
            " --reset_classes."
        )
    return names


# ------------------------------------------------------------------------------------------------
# A weights folder -> foreign weights


def write_foreign(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Writes a checkpoint's weights under the names and in the layouts of their family."""
    if flags.output.suffix not in (".pth", ".pt", ".safetensors", ".weights"):
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
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    if (config.detector == "darknet") != (flags.output.suffix == ".weights"):
        raise errors.UserError(
            f"{weights.path} is of detector {config.detector}, and --output {flags.output};"
            " darknet's is written as .weights, with its .cfg beside it, and no other."
        )
    if config.detector == "darknet":
        _write_darknet(flags.output, config, weights, leaves)
        return
    bgr = flags.bgr or weights.info.get("converted_from", {}).get("bgr", False)
    _check_style(config, bgr)
    source, table = _table_back(flags.source, config, leaves, weights.path, bgr)
    try:
        tensors = mapping.reverse(mapping.nest(leaves), table)
    except mapping.ConversionError as error:
        raise errors.UserError(f"{weights.path}: {error}") from error
    if isinstance(source.table, sources.Networks):
        tensors |= source.table.buffers(config.model)
    try:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        if flags.output.suffix in (".pth", ".pt"):
            torch_file.write(flags.output, tensors)
        else:
            names = weights.info.get("class_names")
            safetensors_file.write(flags.output, tensors, names)
    except OSError as error:
        raise errors.UserError(
            f"{flags.output} cannot be written: {error.strerror or error}."
        ) from error
    print(f"{len(tensors)} tensors of {weights.path} are in {flags.output}, as {table.name}")


def _write_darknet(output: pathlib.Path, config, weights: checkpoint.Weights, leaves) -> None:
    """`.weights` and beside it `.cfg`; the header is that of the file they came from, if any."""
    cfg = output.with_suffix(".cfg")
    if cfg.exists():
        raise errors.UserError(f"{cfg} exists already; name a new file.")
    fields = {
        k: v for k, v in config.model.items() if k in ("cfg", "num_classes", "width_multiple")
    }
    network = darknet.Darknet(**fields).network()
    table = darknet_table.table(network)
    shapes = target_shapes(config)
    missing = [path for path in shapes if path not in leaves]
    if missing:
        raise errors.UserError(
            f"{weights.path} lacks {checkpoint.listed(missing)}; only a whole network is written."
        )
    tensors = mapping.reverse(mapping.nest(leaves), table)
    header = darknet_reader.Header(**weights.info.get("converted_from", {}).get("header", {}))
    output.parent.mkdir(parents=True, exist_ok=True)
    darknet_reader.write(output, network, darknet_reader.Weights(header, tensors))
    files_lib.write_text(cfg, darknet_cfg.format(network))
    print(f"{len(tensors)} tensors of {weights.path} are in {output}, their network in {cfg}")


def _table_back(
    family: str, config, leaves: Mapping, path: pathlib.Path, bgr: bool
) -> tuple[sources.Source, mapping.Table]:
    """The table of the whole detector, else of a backbone, whose every leaf is there."""
    shapes, found = target_shapes(config), []
    for source in _sources_of(family, config.detector):
        table = _table_of(source, config, bgr)
        wanted = [leaf for leaf in shapes if mapping.inside(leaf, table.subtrees)]
        absent = [p for p in wanted if p not in leaves or leaves[p].shape != shapes[p]]
        found.append((not absent, len(wanted), table.name, source, table, absent))
    complete, size, name, source, table, absent = max(found, key=lambda entry: entry[:2])
    if not complete:
        raise errors.UserError(
            f"{path} is no complete {name}: {len(absent)} leaves are not there in the shape of the"
            f" config, such as {absent[0]}."
        )
    names = sorted({other[2] for other in found if other[:2] == (complete, size)})
    if len(names) > 1:
        raise errors.UserError(f"{path} may be {' or '.join(names)}; say which with --source.")
    return source, table


if __name__ == "__main__":
    errors.run_main(main)

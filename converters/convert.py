"""Weights of other code bases as a detlab weights folder, and back.

    python -m converters.convert --source torchvision --config experiments/retinanet_voc.py \\
        --input resnet50-0676ba61.pth --output weights/resnet50_torchvision
    python -m converters.convert --reverse --input runs/retinanet_voc --output retinanet.pth
    python -m converters.convert --inspect FILE

The folder is what `config.init_from`, eval and demo read; its `report.json` says what became of
every tensor of the file and every leaf of the detector.  A torchvision file fills the backbone
alone, an mmdet file the whole detector.  `--input` may be a URL.
"""

import argparse
import collections
import json
import pathlib
from typing import Callable, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from converters import download
from converters import inspect_file
from converters import mapping
from converters.readers import contents
from converters.readers import files
from converters.tables import mmdet_retinanet
from converters.tables import torchvision_resnet
from converters.writers import safetensors_file
from converters.writers import torch_file
from detlab import checkpoint
from detlab import checks
from detlab import config as config_lib
from detlab import darknet_cfg
from detlab import detector as detector_lib
from detlab import errors


class Source(NamedTuple):
    """A kind of file: how to know one, and what it is converted by."""

    family: str  # what --source names
    description: str
    marks: tuple[str, ...]  # names that every such file has
    table: Callable[[bool], mapping.Table]  # of `bgr`
    detector: str | None  # the only one that it fits; None: any with such a subtree


SOURCES = (
    Source(
        "torchvision",
        "a torchvision ResNet",
        ("conv1.weight", "layer1.0.conv1.weight"),
        torchvision_resnet.table,
        None,
    ),
    Source(
        "mmdet",
        "an mmdet RetinaNet",
        ("backbone.conv1.weight", "bbox_head.retina_cls.weight"),
        mmdet_retinanet.table,
        "retinanet",
    ),
)
FAMILIES = tuple(dict.fromkeys(source.family for source in SOURCES))


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    flags, overrides = config_lib.parse(arguments, _parser())
    if flags.inspect:
        network = darknet_cfg.read(flags.cfg) if flags.cfg else None
        print(inspect_file.describe(_local(flags.inspect, flags.sha256), network))
    elif not flags.input or not flags.output:
        raise errors.UserError("give --input and --output, or --inspect FILE alone.")
    elif flags.reverse:
        write_foreign(flags, overrides)
    elif not flags.config:
        raise errors.UserError("give --config, the experiment whose detector the weights are for.")
    else:
        convert(flags, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m converters.convert",
        description=__doc__,
        epilog="Any key of the config is overridden by --config.key=value.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", choices=("auto", *FAMILIES), default="auto")
    parser.add_argument("--config", help="experiment file or name")
    parser.add_argument("--input", help="a weight file (.pth, .pt, .safetensors, .npz) or its URL")
    parser.add_argument("--sha256", default="", help="of a URL whose name does not have it")
    parser.add_argument("--output", type=pathlib.Path, help="a folder to be made")
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="the network was trained on BGR images (caffe-style ResNets): flip its stem to RGB",
    )
    parser.add_argument(
        "--reset_classes",
        action="store_true",
        help="leave the class layers out: to train on other classes than those of the file",
    )
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="from detlab to a .pth or .safetensors: --input is a workdir or a weights folder",
    )
    parser.add_argument("--checkpoint", default="best", help="of --reverse: best, last or a step")
    parser.add_argument("--inspect", metavar="FILE", help="print what a weight file holds")
    parser.add_argument("--cfg", help="of --inspect: the network of a darknet .weights file")
    return parser


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
    file = files.read(path)
    source = _source(flags.source, path, file.tensors, flags.config, config.detector)
    _check_channel_order(path, file, flags.bgr)
    table = source.table(flags.bgr)
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
    params = tree.pop("params")
    info = {
        "config": config_lib.to_json(config),
        "converted_from": {"file": path.name, "table": table.name},
        "anew": [row.target for row in report if row.status == mapping.ANEW],
    }
    if class_names:
        info["class_names"] = list(class_names)
    try:
        checkpoint.save_weights(flags.output, params, tree, info)
        rows = [row._asdict() for row in report]
        text = json.dumps({**info["converted_from"], "rows": rows}, indent=1)
        (flags.output / "report.json").write_text(text + "\n")
    except OSError as error:
        raise errors.UserError(
            f"{flags.output} cannot be written: {error.strerror or error}."
        ) from error
    print(mapping.format_report(report))
    counts = collections.Counter(row.status for row in report)
    print(f"{counts['matched']} tensors of {path} are in {flags.output}")


def target_shapes(config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all leaves of the configured detector; no model runs."""
    detector = detector_lib.build(config)
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
) -> Source:
    """The kind of the file: of the family, known by its names, and for the detector."""
    wanted = [source for source in SOURCES if family in ("auto", source.family)]
    fitting = [source for source in SOURCES if all(m in names for m in source.marks)]
    known = [source for source in wanted if source in fitting]
    if not known:
        is_not = " or ".join(source.description for source in wanted)
        looks = f"it looks like {fitting[0].description}" if fitting else "its names begin with "
        looks += "" if fitting else ", ".join(list(names)[:4])
        raise errors.UserError(f"{path} is not {is_not}; {looks}.")
    for source in known:
        if source.detector in (None, detector):
            return source
    raise errors.UserError(
        f"{known[0].description} fits detector {known[0].detector} only, and {config_name} is of"
        f" {detector}."
    )


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


def _class_names(path: pathlib.Path, file: contents.Contents, config) -> tuple[str, ...]:
    """The file's names, if it has any; as many as the detector has classes."""
    names = file.class_names or ()
    expected = detector_lib.num_classes(config)
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
    if flags.reset_classes:
        raise errors.UserError("--reset_classes does not go with --reverse.")
    if flags.output.suffix not in (".pth", ".safetensors"):
        raise errors.UserError(f"--output {flags.output} must end with .pth or .safetensors.")
    weights = checkpoint.load_weights(flags.input, flags.checkpoint)
    if flags.config:
        config = config_lib.load(flags.config, overrides)
    elif "config" in weights.info:
        config = config_lib.from_json(weights.info["config"])
    else:
        raise errors.UserError(f"{weights.path} has no config; name its experiment with --config.")
    fitting = [
        source
        for source in SOURCES
        if flags.source in ("auto", source.family) and source.detector in (None, config.detector)
    ]
    # The whole detector's, where there is such a kind, before that of its backbone.
    table = max(fitting, key=lambda source: source.detector is not None).table(flags.bgr)
    try:
        tensors = mapping.reverse({"params": weights.params, **weights.state}, table)
    except mapping.ConversionError as error:
        raise errors.UserError(f"{weights.path}: {error}") from error
    try:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        if flags.output.suffix == ".pth":
            torch_file.write(flags.output, tensors)
        else:
            names = weights.info.get("class_names")
            safetensors_file.write(flags.output, tensors, names)
    except OSError as error:
        raise errors.UserError(
            f"{flags.output} cannot be written: {error.strerror or error}."
        ) from error
    print(f"{len(tensors)} tensors of {weights.path} are in {flags.output}, as {table.name}")


if __name__ == "__main__":
    errors.run_main(main)

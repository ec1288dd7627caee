"""Weights of torchvision and mmdet as a detlab weights folder.

    python -m converters.convert --source torchvision --config experiments/retinanet_voc.py \\
        --input resnet50-0676ba61.pth --output weights/resnet50_torchvision

The folder is what `config.init_from`, eval and demo read; its `report.json` says what became of
every tensor of the file and every leaf of the detector.  A torchvision file fills the backbone
alone, an mmdet file the whole detector.
"""

import argparse
import collections
import json
import pathlib
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from converters import mapping
from converters.readers import torch_file
from converters.tables import mmdet_retinanet
from converters.tables import torchvision_resnet
from detlab import checkpoint
from detlab import config as config_lib
from detlab import detector as detector_lib
from detlab import errors


class Source(NamedTuple):
    """A family of files: how to know one, and what it is converted by."""

    description: str
    marks: tuple[str, ...]  # names that every such file has
    table: Callable[[bool], mapping.Table]  # of `bgr`
    detector: str | None  # the only one that it fits; None: any with such a subtree


SOURCES = {
    "torchvision": Source(
        "a torchvision ResNet",
        ("conv1.weight", "layer1.0.conv1.weight"),
        torchvision_resnet.table,
        None,
    ),
    "mmdet": Source(
        "an mmdet RetinaNet",
        ("backbone.conv1.weight", "bbox_head.retina_cls.weight"),
        mmdet_retinanet.table,
        "retinanet",
    ),
}


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m converters.convert",
        description=__doc__.split("\n\n")[0],
        epilog="Any key of the config is overridden by --config.key=value.",
    )
    parser.add_argument("--source", choices=("auto", *SOURCES), default="auto")
    parser.add_argument("--config", required=True, help="experiment file or name")
    parser.add_argument("--input", required=True, type=pathlib.Path, help="a .pth or .pt file")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="a folder to be made")
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="the network was trained on BGR images (caffe-style ResNets): flip its stem to RGB",
    )
    flags, overrides = config_lib.parse(arguments, parser)
    config = config_lib.load(flags.config, overrides)
    _check_output(flags.output)
    file = torch_file.read(flags.input)
    source = _source(flags.source, flags.input, file.tensors)
    _check_detector(SOURCES[source], flags.config, config)
    _check_channel_order(flags.input, file.meta, flags.bgr)
    class_names = _class_names(flags.input, file.meta, config)

    table = SOURCES[source].table(flags.bgr)
    try:
        tree, report = mapping.convert(file.tensors, table, target_shapes(config))
    except mapping.ConversionError as error:
        raise errors.UserError(f"{flags.input} and {flags.config}: {error}") from error
    params = tree.pop("params")
    info = {
        "config": config_lib.to_json(config),
        "converted_from": {"file": flags.input.name, "table": table.name},
    }
    if class_names:
        info["class_names"] = class_names
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
    print(f"{counts['matched']} tensors of {flags.input} are in {flags.output}")


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


def _source(wanted: str, path: pathlib.Path, names: Mapping) -> str:
    """The family of the file; the wanted one, if any, must be it."""
    fitting = [key for key, source in SOURCES.items() if all(m in names for m in source.marks)]
    if wanted in fitting:
        return wanted
    if wanted == "auto" and len(fitting) == 1:
        return fitting[0]
    known = list(SOURCES) if wanted == "auto" else [wanted]
    is_not = " or ".join(SOURCES[key].description for key in known)
    looks = f"it looks like {SOURCES[fitting[0]].description}" if fitting else "its names begin"
    looks += "" if fitting else f" with {', '.join(list(names)[:4])}"
    raise errors.UserError(f"{path} is not {is_not}; {looks}.")


def _check_detector(source: Source, name: str, config) -> None:
    if source.detector not in (None, config.detector):
        raise errors.UserError(
            f"{source.description} fits detector {source.detector} only, and {name} is of"
            f" {config.detector}."
        )


def _check_channel_order(path: pathlib.Path, meta: Mapping, bgr: bool) -> None:
    """mmdet stores its configuration as text, with `to_rgb=False` (2.x) or `bgr_to_rgb=False`."""
    inner = _mapping(meta, "meta")
    text = next((inner[key] for key in ("config", "cfg") if isinstance(inner.get(key), str)), "")
    if not bgr and "to_rgb=False" in text.replace(" ", ""):
        raise errors.UserError(
            f"{path} was trained on BGR images, as the configuration in it says; convert it with"
            " --bgr, and set config.model.style, pixel_mean and pixel_std (in RGB order) to match."
        )


def _class_names(path: pathlib.Path, meta: Mapping, config) -> list[str]:
    """Names in the file's metadata (mmdet 2.x: meta.CLASSES, 3.x: meta.dataset_meta), if any."""
    inner = _mapping(meta, "meta")
    dataset = _mapping(inner, "dataset_meta")
    candidates = (inner.get("CLASSES"), dataset.get("CLASSES"), dataset.get("classes"))
    names = next((list(c) for c in candidates if isinstance(c, (list, tuple))), [])
    names = [name for name in names if isinstance(name, str)]
    expected = config.model.get("num_classes", len(names))
    if names and len(names) != expected:
        raise errors.UserError(
            f"{path} knows {len(names)} classes and config.model.num_classes is {expected};"
            f" add --config.model.num_classes={len(names)}."
        )
    return names


def _mapping(parent: Mapping, key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


if __name__ == "__main__":
    errors.run_main(main)

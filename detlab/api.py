"""Python's interface: `detlab.load`, `detlab.build`, `detlab.read_config` (docs/python.md)."""

import argparse
import os
import pathlib
import shlex
from typing import Any

from ml_collections import config_dict

from detlab import cli, contract, environment, errors, paths, predictor, trained
from detlab import config as config_lib
from detlab.converters import download, hub, import_weights, named, published
from detlab.converters import family as family_lib
from detlab.converters import flags as flags_lib
from detlab.run import checkpoint


def load(
    where: str | os.PathLike,
    config: str | None = None,
    *,
    checkpoint: str | None = None,
    options: str = "",
    batch_size: int = 1,
    **overrides: Any,
) -> predictor.Predictor:
    """A detector with weights, ready for images.

        detlab.load("runs/retinanet_voc")                      # a run, or a weights folder
        detlab.load("yolov5n.pt")                              # a file of other code
        detlab.load("mask.weights", options="--cfg mask.cfg --names mask.names")
        detlab.load("mine.pth", config="retinanet_voc")        # where the file does not tell
        detlab.load("retinanet_r50_fpn_1x_coco")               # downloads a published file once
        detlab.load("hf://owner/name")                         # needs `pip install "detlab[hub]"`

    Args:
      where: a run, a checkpoint or a weights folder; a weight file or its URL; the name of a
        published file (docs/models.md); or a folder on the Hugging Face hub.  A path comes first.
      config: experiment, for weights that come without one.
      checkpoint: of a run: best (default), last or a step.
      options: for weight files, flags of `detlab convert`, such as `--bgr`.
      batch_size: images of a list that are computed together.
      **overrides: keys of the config, see `read_config`.
    Raises:
      UserError: there is no such detector, or config and weights do not fit; the sentences are
        those of the programs.
    """
    texts = _texts(overrides)
    environment.check_devices()
    resolved, weights = _find(paths.expand(os.fspath(where)), config, checkpoint, options, texts)
    found = trained.for_pictures(resolved, weights, texts)
    return predictor.Predictor(
        found.config, found.params, found.state, found.class_names, batch_size
    )


def build(config: config_dict.ConfigDict) -> contract.Detector:
    """The detector of a config, as pure functions; see `contract.Detector`.

    Raises:
      UserError: an unknown detector or field, or a value that it cannot have.
    """
    return contract.build(config)


def read_config(name: str, **overrides: Any) -> config_dict.ConfigDict:
    """The config of a shipped experiment or of a file, optionally `:variant`.

        detlab.read_config("retinanet_voc", optim__lr=0.005)
        detlab.read_config("retinanet_voc", **{"optim.lr": 0.005})

    Args:
      name: see `config.load`.
      **overrides: keys of the config, with `__` or `.` between their parts.
    Raises:
      UserError: no such experiment or key, or a value of another type.
    """
    return config_lib.load(name, _texts(overrides))


def _texts(overrides: dict[str, Any]) -> dict[str, str]:
    """Overrides as a command line has them."""
    return {
        key.replace("__", "."): value if isinstance(value, str) else repr(value)
        for key, value in overrides.items()
    }


def _find(
    where: str, config: str | None, which: str | None, options: str, overrides: dict[str, str]
) -> tuple[config_dict.ConfigDict, checkpoint.Weights]:
    """Config and weights of whatever `where` names."""
    if hub.is_address(where):
        where = str(hub.fetch(where))
    path = pathlib.Path(where)
    if path.is_dir():
        if options:
            raise errors.UserError(f"options are for weight files; {where} is a folder.")
        if config and which:
            raise errors.UserError(
                f"checkpoint={which!r} chooses one of a run, which has a config; remove config, or"
                " give the folder of the checkpoint."
            )
        args = argparse.Namespace(workdir=where, config=None, checkpoint=which)
        if config:
            args = argparse.Namespace(workdir=None, config=config, checkpoint=where)
        return trained.load(args, overrides)
    if which:
        raise errors.UserError(f"checkpoint={which!r} chooses one of a run; {where} is no run.")
    if not path.exists() and not download.is_url(where):
        row = published.find(where)
        if row is None:
            raise errors.UserError(
                f"{where} does not exist; give a run, a weights folder, a weight file, hf://owner/"
                "name, or the name of a published model (docs/models.md)."
            )
        if "file" in row:
            raise errors.UserError(
                f"{where} is {row['file']} at {row['url']}, which only a browser downloads; save it"
                f' and load its path with config="{row["config"]}".'
            )
        config = config or row["config"]
        where, options = row["url"], f"{row.get('options', '')} {options}"
    return _convert(where, config, options, overrides)


def _convert(
    where: str, config: str | None, options: str, overrides: dict[str, str]
) -> tuple[config_dict.ConfigDict, checkpoint.Weights]:
    """A weight file of other code, converted in memory."""
    parser = flags_lib.convert("")
    flags, more = cli.parse([*shlex.split(options), "--input", where], parser)
    for name in ("inspect", "output", "pack", "reverse"):
        if getattr(flags, name):
            raise errors.UserError(f"options has --{name}, but nothing is written; remove it.")
    flags.config = config or flags.config or _experiment_for(where, flags)
    flags.follow_classes = "model.num_classes" not in overrides
    converted = import_weights.convert(flags, {**more, **overrides})
    return converted.config, converted.weights


def _experiment_for(where: str, flags: argparse.Namespace) -> str:
    """The experiment on COCO of the detector that a file belongs to.

    Raises:
      UserError: it may belong to several or none, or is only a backbone.
    """
    path = download.local(where, flags.sha256)
    family = family_lib.of_file(path, flags.source)
    if family.detector:
        return f"{family.detector}_coco"
    detectors = named.detectors(path, flags)
    if len(detectors) == 1:
        return f"{detectors[0]}_coco"
    may = f"may be one of {' or '.join(detectors)}" if detectors else "is of no known detector"
    raise errors.UserError(
        f"{where} {may}; name its experiment, such as config="
        f'"{(detectors or ["retinanet"])[0]}_coco".'
    )

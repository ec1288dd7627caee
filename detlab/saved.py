"""Saved predictions and the data that they are for: --workdir, or --config and --predictions.

No model is built.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from detlab import checks, data_sets, errors, evaluation
from detlab import config as config_lib
from detlab import predictions as predictions_lib
from detlab.run import workdir as workdir_lib


class Saved(NamedTuple):
    """Predictions on the evaluation data of a config."""

    config: config_dict.ConfigDict
    source: Any
    truth: list[dict]  # see `evaluation.ground_truth`
    predictions: list[dict]
    path: pathlib.Path  # of the predictions
    workdir: pathlib.Path | None


def load(args: argparse.Namespace, overrides: Mapping[str, str]) -> Saved:
    """Reads the predictions of --workdir, or of --predictions, and opens the data of the config.

    Args:
      args: has `workdir`, `config`, `predictions` and `limit`, the number of images, None for all.
    Raises:
      UserError: no predictions, or they do not fit the data.
    """
    if bool(args.workdir) == bool(args.config):
        raise errors.UserError(
            "give --workdir, the folder of a finished run, or --config with --predictions."
        )
    if args.workdir:
        workdir = workdir_lib.Workdir(args.workdir)
        config = _config_of(workdir, overrides)
        path = pathlib.Path(args.predictions or workdir.predictions)
        if not path.exists() and not args.predictions:
            raise errors.UserError(
                f"{workdir.path} has no predictions, which a finished run writes; write some with"
                f" `detlab eval --workdir {workdir.path} --predictions FILE` and give --predictions"
                " FILE."
            )
    elif args.predictions:
        workdir, path = None, pathlib.Path(args.predictions)
        config = config_lib.load(args.config, overrides)
    else:
        raise errors.UserError(
            f"--config {args.config} needs --predictions FILE; `detlab eval --predictions FILE`"
            " writes them."
        )
    checks.check_config(config)
    source, truth, found = read(config, path, args.limit)
    return Saved(config, source, truth, found, path, workdir and workdir.path)


def read(
    config: config_dict.ConfigDict, path: str | pathlib.Path, limit: int | None = None
) -> tuple[Any, list[dict], list[dict]]:
    """Opens the evaluation data of a config and reads the predictions of a file for them.

    Returns:
      (source, truth, predictions), of the first `limit` images.
    """
    saved = predictions_lib.load(path)
    source = data_sets.open_source(config, "eval", saved.class_names)
    truth = evaluation.ground_truth(source)
    found = predictions_lib.match(saved, source, truth)
    if limit is not None:
        truth = truth[:limit]
        wanted = {image["image_id"] for image in truth}
        found = [image for image in found if image["image_id"] in wanted]
    evaluation.report_no_objects(truth)
    return source, truth, found


def _config_of(workdir, overrides):
    try:
        values = json.loads(workdir.config.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.UserError(
            f"--workdir {workdir.path} holds no run: {workdir.config.name} cannot be read"
            f" ({error.strerror or error})."
        ) from error
    except ValueError as error:
        raise errors.UserError(f"{workdir.config} is no JSON ({error}).") from error
    config = config_lib.from_json(values)
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    config_lib.expand_paths(config)
    return config

"""Loads the config and weights of a trained or converted detector onto the devices."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from detlab import checks, contract, environment, errors, sharding
from detlab import config as config_lib
from detlab import detect as detect_lib
from detlab.run import checkpoint
from detlab.run import state as state_lib

_OF_LOSSES = "loss_state"


def load(
    args: argparse.Namespace, overrides: Mapping[str, str]
) -> tuple[config_dict.ConfigDict, checkpoint.Weights]:
    """Loads config and weights from --workdir, or from --config and --checkpoint."""
    if args.workdir and args.config:
        raise errors.UserError(
            "--workdir and --config exclude each other; give --workdir, or --config with"
            " --checkpoint."
        )
    if args.workdir:
        weights = checkpoint.load_weights(args.workdir, args.checkpoint or "best")
        if "config" not in weights.info:
            raise errors.UserError(
                f"{weights.path} was not written by training and has no config; give --config, and"
                " the folder as --checkpoint instead of --workdir."
            )
        config = config_lib.from_json(weights.info["config"])
        for key, text in overrides.items():
            config_lib.override(config, key, text)
        config_lib.expand_paths(config)
    elif args.config and args.checkpoint:
        config = config_lib.load(args.config, overrides)
        weights = checkpoint.load_weights(args.checkpoint)
    else:
        raise errors.UserError("no detector given; give --workdir, or --config with --checkpoint.")
    checks.check_config(config)
    return config, weights


class ForPictures(NamedTuple):
    """A detector on the devices, as it detects the objects of pictures."""

    config: config_dict.ConfigDict  # with the values of `predict.model`
    detector: contract.Detector
    params: Any
    state: Any
    class_names: tuple[str, ...]


def for_pictures(
    config: config_dict.ConfigDict, weights: checkpoint.Weights, overrides: Mapping[str, str]
) -> ForPictures:
    """Puts what `load` returned onto the devices; `overrides` as for `detect.for_pictures`."""
    contract.build(config)  # names the block, model or predict.model, of what it refuses
    config = detect_lib.for_pictures(config, overrides)
    environment.use_compilation_cache(config)
    detector = contract.build(config)
    params, state = fit(detector, config, weights, sharding.make_mesh())
    class_names = detect_lib.names_of(weights.info.get("class_names"), config)
    return ForPictures(config, detector, params, state, class_names)


def fit(
    detector: contract.Detector,
    config: config_dict.ConfigDict,
    weights: checkpoint.Weights,
    mesh: jax.sharding.Mesh,
) -> tuple[Any, Any]:
    """(params, state) of the detector on the devices; every leaf must be in the weights.

    Except for `loss_state`, which prediction does not read and converted weights may lack: it is
    that of a first step, zero.
    """
    params, state = jax.eval_shape(
        detector.init, jax.random.key(0), state_lib.example_images(config)
    )
    kept = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.pop(_OF_LOSSES, {}))
    known = {name: tree for name, tree in weights.state.items() if name != _OF_LOSSES}
    merged = checkpoint.merge(params, state, weights._replace(state=known), skip=None)
    restored = {**merged.state, _OF_LOSSES: kept} if kept else merged.state
    return jax.device_put((merged.params, restored), sharding.replicated(mesh))

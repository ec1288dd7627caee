"""A detector that was trained or converted: its config and weights, onto the devices."""

import argparse
from collections.abc import Mapping

import jax

from detlab import checks, contract, errors, sharding
from detlab import config as config_lib
from detlab.run import checkpoint
from detlab.run import state as state_lib


def load(args: argparse.Namespace, overrides: Mapping[str, str]):
    """(config, weights) of --workdir, or of --config and --checkpoint."""
    if args.workdir and args.config:
        raise errors.UserError("give either --workdir or --config with --checkpoint, not both.")
    if args.workdir:
        weights = checkpoint.load_weights(args.workdir, args.checkpoint or "best")
        if "config" not in weights.info:
            raise errors.UserError(
                f"{weights.path} was not written by training; name its config with --config and"
                " the folder with --checkpoint."
            )
        config = config_lib.from_json(weights.info["config"])
        for key, text in overrides.items():
            config_lib.override(config, key, text)
    elif args.config and args.checkpoint:
        config = config_lib.load(args.config, overrides)
        weights = checkpoint.load_weights(args.checkpoint)
    else:
        raise errors.UserError("give --workdir of a run, or --config together with --checkpoint.")
    checks.check_config(config)
    return config, weights


def fit(detector: contract.Detector, config, weights: checkpoint.Weights, mesh):
    """(params, state) of the whole detector on the devices; nothing may be missing."""
    params, state = jax.eval_shape(
        detector.init, jax.random.key(0), state_lib.example_images(config)
    )
    merged = checkpoint.merge(params, state, weights, skip=None)
    return jax.device_put((merged.params, merged.state), sharding.replicated(mesh))

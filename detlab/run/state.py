"""The state of a run: initial, from weights, or as shapes; and the part that is evaluated."""

import concurrent.futures
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from detlab import contract, errors, sharding, text, types
from detlab.run import checkpoint, optim


class Weights(NamedTuple):
    """Weights to start from: arrays, and shapes of the leaves that are still to be initialised."""

    params: Any
    state: Any
    random: tuple[str, ...]  # paths of these leaves


def initial(
    detector: contract.Detector,
    optimizer: optim.Optimizer,
    config: config_dict.ConfigDict,
    mesh: jax.sharding.Mesh,
) -> types.TrainState:
    """The state of step 0 on every device, with the weights of `initial_weights`."""
    return begin(detector, optimizer, config, mesh)()


def begin(
    detector: contract.Detector,
    optimizer: optim.Optimizer,
    config: config_dict.ConfigDict,
    mesh: jax.sharding.Mesh,
) -> Callable[[], types.TrainState]:
    """Begins to compute `initial` in a second thread; the result waits for it.

    The caller can trace and compile the training step meanwhile: both take seconds.

    Raises:
      UserError: as `initial_weights`, at once.
    """
    weights = initial_weights(detector, config)
    executor = concurrent.futures.ThreadPoolExecutor(1, "initial state")
    computed = executor.submit(_compute, detector, optimizer, config, weights)
    executor.shutdown(wait=False)

    def result() -> types.TrainState:
        return jax.device_put(computed.result(), sharding.replicated(mesh))

    return result


def _compute(
    detector: contract.Detector,
    optimizer: optim.Optimizer,
    config: config_dict.ConfigDict,
    weights: Weights,
) -> types.TrainState:
    """The state of step 0, by one program; it computes no leaf that `weights` has."""
    start = time.time()

    def make(key: jax.Array, loaded: dict[str, jax.Array]) -> types.TrainState:
        return of_weights(*_filled(detector, config, weights, key, loaded), optimizer, config)

    state = _run_once(make, config, weights)
    print(f"initialised in {time.time() - start:.1f} s")
    return state


def variables(detector: contract.Detector, config: config_dict.ConfigDict) -> tuple[Any, Any]:
    """(params, state) of step 0, without the rest of a training state.

    Raises:
      UserError: as `initial_weights`.
    """
    weights = initial_weights(detector, config)
    return _run_once(
        lambda key, loaded: _filled(detector, config, weights, key, loaded), config, weights
    )


def _run_once(make: Callable[..., Any], config: config_dict.ConfigDict, weights: Weights) -> Any:
    """What `make` computes from the run's key and the leaves that `weights` has."""
    leaves = checkpoint.flat_leaves(weights.params, weights.state)
    loaded = {path: x for path, x in leaves.items() if path not in set(weights.random)}
    make = jax.jit(make, compiler_options=quick_options())
    return jax.block_until_ready(make(jax.random.key(config.seed), loaded))


def _filled(
    detector: contract.Detector,
    config: config_dict.ConfigDict,
    weights: Weights,
    key: jax.Array,
    loaded: dict[str, jax.Array],
) -> tuple[Any, Any]:
    """(params, state): the leaves of `loaded`, the others as the detector draws them."""
    drawn = checkpoint.flat_leaves(*detector.init(key, example_images(config)))
    drawn = {path: drawn[path] for path in weights.random}
    return checkpoint.replaced(weights.params, weights.state, {**drawn, **loaded})


def abstract(
    detector: contract.Detector,
    optimizer: optim.Optimizer,
    config: config_dict.ConfigDict,
    mesh: jax.sharding.Mesh,
) -> types.TrainState:
    """Shapes and shardings of a state to restore; nothing is computed."""

    def make(images):
        params, state = detector.init(jax.random.key(0), images)
        return of_weights(params, state, optimizer, config)

    everywhere = sharding.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(make, example_images(config)),
    )


def of_weights(
    params: Any, state: Any, optimizer: optim.Optimizer, config: config_dict.ConfigDict
) -> types.TrainState:
    """The state of step 0 with these weights, which are also the first averages."""
    opt_state = optimizer.transform.init(params)
    ema = None
    if config.optim.ema_decay:
        # Copies, because a step donates the buffers of the state and may donate none twice.
        ema = jax.tree.map(jnp.copy, {"params": params, "state": state})
    return types.TrainState(jnp.zeros((), jnp.int32), params, state, opt_state, ema)


def evaluated(state: types.TrainState) -> tuple[Any, Any]:
    """(params, model state) to evaluate and predict with: the averages if there are any."""
    if state.ema is None:
        return state.params, state.state
    return state.ema["params"], state.ema["state"]


def initial_weights(detector: contract.Detector, config: config_dict.ConfigDict) -> Weights:
    """The weights to start from: leaves from `init_from`, the others to be initialised.

    Raises:
      UserError: leaves that are never trained would keep their initial values.
    """
    params, state = jax.eval_shape(detector.init, jax.random.key(0), example_images(config))
    random = checkpoint.flat_paths(params, state)
    if config.init_from:
        weights = checkpoint.load_weights(config.init_from)
        reasons = checkpoint.may_differ(weights, contract.num_classes(config))
        reasons["named by config.init_skip"] = config.init_skip
        merged = checkpoint.merge(params, state, weights, sum(reasons.values(), ()))
        params, state, random = merged.params, merged.state, merged.initialised
        print(f"{len(merged.loaded)} leaves from {weights.path}, {len(random)} initialised")
        untold = list(random)
        for reason, regexes in reasons.items():
            paths = [p for p in untold if any(re.fullmatch(r, p) for r in regexes)]
            untold = [p for p in untold if p not in paths]
            if paths:
                print(f"initialised ({reason}): {text.listed(paths, checkpoint.LISTED)}")
    constant = [p for p in random if any(re.fullmatch(f, p) for f in detector.frozen)]
    if constant:
        raise errors.UserError(
            f"{len(constant)} frozen leaves would keep their initial values, such as"
            f" {constant[0]}; name weights in config.init_from, or train everything with"
            " --config.model.backbone_norm=batch --config.model.frozen_stages=0."
        )
    return Weights(params, state, tuple(random))


def quick_options() -> dict[str, int] | None:
    """Compiler options of a program that runs once; None where the defaults are kept.

    On a CPU level 1 compiles in a third of the time and computes the same bits; level 0 rounds some
    initial values differently.  A level in XLA_FLAGS is kept.
    """
    name = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
        return None
    return {name: 1}


def check_init_from(config: config_dict.ConfigDict) -> None:
    """Checks that the weights to start from exist, before the data, which may be slow to open."""
    if config.init_from and not pathlib.Path(config.init_from).exists():
        remedy = f": {config.init_help}" if config.init_help else ""
        raise errors.UserError(
            f"config.init_from is {config.init_from}, which does not exist{remedy}."
        )


def example_images(config: config_dict.ConfigDict) -> jax.Array:
    """One blank image, of the first canvas: parameters do not depend on its size."""
    return jnp.zeros((1, *config.data.canvases[0], 3), jnp.uint8)

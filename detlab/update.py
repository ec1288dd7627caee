"""One update of a training run: gradients, optimizer, metrics; a pure function of arrays."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax

from detlab import detector as detector_lib
from detlab import optim
from detlab import types


def initial(params: Any, state: Any, optimizer: optim.Optimizer) -> types.TrainState:
    """The training state of step 0."""
    opt_state = optimizer.transform.init(params)
    return types.TrainState(jnp.zeros((), jnp.int32), params, state, opt_state, ema=None)


def make(detector: detector_lib.Detector, optimizer: optim.Optimizer, config) -> Callable:
    """(TrainState, Batch) -> (TrainState, metrics), to be compiled.

    The metrics are float32 scalars: `loss`, its terms `loss/*`, what else the detector reports,
    the norms of gradients and of trained parameters after the update, and `lr`.
    """

    def update(state: types.TrainState, batch: types.Batch):
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        value_and_grad = jax.value_and_grad(detector.loss, has_aux=True)
        (loss, (metrics, model_state)), grads = value_and_grad(
            state.params, state.state, batch, rng
        )
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": optax.tree.norm(trained_leaves(grads)),
            "param_norm": optax.tree.norm(trained_leaves(params)),
            "lr": optimizer.schedule(state.step),
        }
        new = types.TrainState(state.step + 1, params, model_state, opt_state, state.ema)
        return new, metrics

    def trained_leaves(tree):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(optimizer.labels), strict=True)
        return [leaf for leaf, label in pairs if label == "train"]

    return update

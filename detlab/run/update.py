"""One update of a training run: gradients, optimizer, averaged weights, metrics.

A pure function of arrays, compiled by `detlab.run.step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from detlab import contract, types
from detlab.run import optim

if TYPE_CHECKING:
    from ml_collections import config_dict


def of(
    detector: contract.Detector, optimizer: optim.Optimizer, config: config_dict.ConfigDict
) -> Callable:
    """The function (TrainState, Batch) -> (TrainState, metrics), to be compiled.

    The metrics are float32 scalars: `loss`, its terms `loss/*`, other metrics of the detector, the
    norms of the gradients and of the trained parameters after the update, `lr`, and `momentum` and
    `lr_biases` if these warm up.

    With `config.train.accumulate` = k, the batch is processed in k parts, see `gradients_in_parts`.
    It is still one update, with one step of schedule, optimizer and averages.
    """
    parts, loss_of = config.train.accumulate, detector.loss
    gradients = gradients_in_parts(loss_of, parts) if parts > 1 else gradients_of(loss_of)

    def update(state: types.TrainState, batch: types.Batch):
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, metrics, model_state, grads = gradients(state.params, state.state, batch, rng)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": optim.norm(trained_leaves(grads)),
            "param_norm": optim.norm(trained_leaves(params)),
            "lr": optimizer.schedule(state.step),
            **{name: warmup(state.step) for name, warmup in optimizer.warmups.items()},
        }
        step, ema = state.step + 1, None
        if state.ema is not None:
            ema = moving_averages(state.ema, params, model_state, step, config.optim)
        return types.TrainState(step, params, model_state, opt_state, ema), metrics

    def trained_leaves(tree):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(optimizer.labels), strict=True)
        return [leaf for leaf, label in pairs if label == "train"]

    return update


def gradients_of(loss: Callable) -> Callable:
    """The function (params, model state, batch, rng) -> (loss, metrics, model state, gradients)."""

    def gradients(params, model_state, batch: types.Batch, rng: jax.Array):
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, model_state)), grads = value_and_grad(params, model_state, batch, rng)
        return value, metrics, model_state, grads

    return gradients


def gradients_in_parts(loss: Callable, parts: int) -> Callable:
    """`gradients_of` over `parts` equal parts of a batch in turn, in the memory of one part.

    If a detector reports `metrics["normaliser"]`, the divisor of its loss terms, parts are weighted
    by it: sum(n_j * loss_j) / sum(n_j) is the loss of the whole batch.  Otherwise parts have equal
    weights.  Model state passes from part to part, so live batch statistics are those of one part.
    """

    def gradients(params, model_state, batch: types.Batch, rng: jax.Array):
        size = batch.images.shape[0]
        if size % parts:
            raise ValueError(f"a batch of {size} images cannot be split into {parts} equal parts")
        # Part j has the rows j, j + parts, ...: each device has images in every part, so none
        # moves to another device.
        rows = jax.tree.map(lambda x: x.reshape(size // parts, parts, *x.shape[1:]), batch)

        def one_part(carry, j):
            model_state, total = carry
            part = jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, j, axis=1, keepdims=False), rows
            )
            value, metrics, model_state, grads = gradients_of(loss)(
                params, model_state, part, jax.random.fold_in(rng, j)
            )
            weight = metrics.get("normaliser", 1.0)
            total = jax.tree.map(lambda t, g: t + weight * g, total, grads)
            return (model_state, total), (value, metrics)

        start = model_state, jax.tree.map(jnp.zeros_like, params)
        (model_state, total), (values, metrics) = lax.scan(one_part, start, jnp.arange(parts))
        weights = metrics.get("normaliser", jnp.ones(parts))  # [parts]
        value = (weights * values).sum() / weights.sum()
        grads = jax.tree.map(lambda t: t / weights.sum(), total)
        metrics = {k: over_parts(k, v, weights) for k, v in metrics.items()}
        return value, metrics, model_state, grads

    def over_parts(name, values, weights):
        """One metric of the whole batch: a sum, a term of the loss, or a mean over parts."""
        if name == "normaliser":
            return values.sum()
        if name.startswith("loss/"):
            return (weights * values).sum() / weights.sum()
        return values.mean()

    return gradients


def moving_averages(
    ema: Any,
    params: Any,
    model_state: Any,
    step: jax.Array,
    settings: config_dict.ConfigDict,
) -> Any:
    """Exponential moving averages of parameters and batch statistics after update `step`.

    The decay is `ema_decay`, or with a warm-up ema_decay * (1 - exp(-step / ema_warmup)) as in
    YOLOv5's ModelEMA, which soon forgets the random initial values.  The first update is step 1.

    Other collections and non-float leaves are not averaged but copied from the model.
    """
    rate = 1.0 - settings.ema_decay  # the weight of the new value
    if settings.ema_warmup:
        rate += settings.ema_decay * jnp.exp(-step / settings.ema_warmup)

    def average(old, new):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + rate * (new - old)  # this form keeps constant values bit-identical

    state = dict(model_state)
    if "batch_stats" in state:
        state["batch_stats"] = jax.tree.map(
            average, ema["state"]["batch_stats"], state["batch_stats"]
        )
    return {"params": jax.tree.map(average, ema["params"], params), "state": state}

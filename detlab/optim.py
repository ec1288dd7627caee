"""Optimizers from a config: schedule, clipping, weight decay and frozen leaves, in optax."""

import re
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from detlab import errors


class Optimizer(NamedTuple):
    """The transformation, the schedule that it follows, and a tree of "train" or "frozen"."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    labels: Any


def build(
    optim,
    params: Any,
    total_steps: int,
    batch_size: int,
    steps_per_unit: int,
    frozen: Sequence[str] = (),
) -> Optimizer:
    """The optimizer of `config.optim`.

    Args:
      optim: the config's block; its `freeze` and `no_decay` are regexes of whole paths that start
        with the collection, `params/...`, as everywhere.
      params: the parameters, for the masks.
      total_steps: length of the run in updates.
      batch_size: images of one update; `lr` is scaled by it over `lr_batch_size`.
      steps_per_unit: updates in one unit of `milestones`: an epoch's, or 1.
      frozen: regexes of `params/...` paths that stay as they are, besides `optim.freeze`.
    Raises:
      UserError: an unknown name or schedule, a pattern that matches nothing, nothing to train, or
        a warm-up longer than the run.
    """
    _check_patterns(params, "freeze", optim.freeze)
    _check_patterns(params, "no_decay", optim.no_decay)
    labels = path_labels(params, [*frozen, *optim.freeze])
    if "train" not in jax.tree.leaves(labels):
        raise errors.UserError("config.optim.freeze matches every parameter, nothing is trained.")
    schedule = learning_rate(optim, total_steps, batch_size, steps_per_unit)
    decayed = traverse_util.path_aware_map(
        lambda path, _: not _matches("/".join(("params", *path)), optim.no_decay), params
    )
    steps = []
    if optim.clip_norm:
        steps.append(optax.clip_by_global_norm(optim.clip_norm))
    if optim.name == "sgd":
        # Weight decay enters before the momentum, as in PyTorch.
        steps.append(optax.add_decayed_weights(optim.weight_decay, decayed))
        steps.append(optax.trace(optim.momentum, nesterov=optim.nesterov))
    elif optim.name == "adamw":
        steps.append(optax.scale_by_adam(b1=optim.momentum))
        steps.append(optax.add_decayed_weights(optim.weight_decay, decayed))
    else:
        raise errors.UserError(f"config.optim.name is {optim.name!r}: sgd or adamw.")
    steps.append(optax.scale_by_learning_rate(schedule))
    # Frozen leaves leave before the clipping norm and the weight decay see them.
    transform = optax.partition(
        {"train": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels
    )
    return Optimizer(transform, schedule, labels)


def learning_rate(optim, total_steps: int, batch_size: int, steps_per_unit: int) -> optax.Schedule:
    """Step -> learning rate: warm-up, then steps or a half cosine.

    Warm-up multiplies what the schedule gives, as in mmdetection; it is linear there, and a fourth
    power in darknet's `burn_in`.  The cosine is SGDR's (arXiv:1608.03983, eq. 5) without restarts.
    """
    scale = batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0
    peak = optim.lr * scale
    warmup = optim.warmup_steps
    if warmup >= total_steps:
        raise errors.UserError(
            f"config.optim.warmup_steps is {warmup}, but the run has {total_steps} steps:"
            " shorten the warm-up or train longer."
        )
    if optim.schedule == "step":
        milestones = jnp.array([m * steps_per_unit for m in optim.milestones])

        def after(step):
            return peak * optim.milestone_factor ** (step >= milestones).sum()

    elif optim.schedule == "cosine":

        def after(step):
            progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
            low = optim.final_factor
            return peak * (low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    elif optim.schedule == "constant":

        def after(step):
            return jnp.full((), peak)

    else:
        raise errors.UserError(
            f"config.optim.schedule is {optim.schedule!r}: step, cosine or constant."
        )

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        progress = (step / max(warmup, 1)) ** optim.warmup_power
        factor = optim.warmup_factor + (1 - optim.warmup_factor) * progress
        return after(step) * jnp.where(step < warmup, factor, 1.0)

    return schedule


def path_labels(params: Any, frozen: Sequence[str]) -> Any:
    """A tree like `params` of "frozen" where a regex matches `params/...`, else "train"."""
    return traverse_util.path_aware_map(
        lambda path, _: "frozen" if _matches("/".join(("params", *path)), frozen) else "train",
        params,
    )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _check_patterns(params: Any, key: str, patterns: Sequence[str]) -> None:
    """A pattern that matches nothing is a mistake."""
    paths = list(traverse_util.flatten_dict({"params": params}, sep="/"))
    for pattern in patterns:
        if not any(re.fullmatch(pattern, p) for p in paths):
            raise errors.UserError(
                f"config.optim.{key}: {pattern!r} matches no parameter, such as {paths[0]}."
            )

"""Optimizers from a config, in optax: schedules, clipping, weight decay and frozen leaves.

Regexes of paths select the frozen parameters, those without weight decay (`no_decay`), and the
`biases`, which may have a separate warm-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from detlab import errors

if TYPE_CHECKING:
    from ml_collections import config_dict

_SMALL = 4096  # values of a leaf that `norm` joins with others


class Optimizer(NamedTuple):
    """The transformation, its schedules, and a tree of "train" or "frozen"."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    labels: Any
    warmups: Mapping[str, optax.Schedule] = {}  # of other quantities that warm up, by log name


def build(
    optim: config_dict.ConfigDict,
    params: Any,
    total_steps: int,
    batch_size: int,
    steps_per_unit: int,
    frozen: Sequence[str] = (),
) -> Optimizer:
    """The optimizer of `config.optim`.

    Args:
      optim: `config.optim`; its `freeze`, `no_decay` and `biases` are regexes that match whole
        paths, which start with the collection, `params/...`.
      params: the parameters, for the masks.
      total_steps: length of the run in updates.
      batch_size: images per update; `lr` is scaled by batch_size / lr_batch_size.
      steps_per_unit: updates per unit of `milestones`: those of an epoch, or 1.
      frozen: regexes of `params/...` paths to freeze, in addition to `optim.freeze`.
    Raises:
      UserError: an unknown name or schedule, a pattern that matches nothing, nothing to train, or
        a warm-up that is not shorter than the run.
    """
    _check_patterns(params, "freeze", optim.freeze)
    _check_patterns(params, "no_decay", optim.no_decay)
    labels = path_labels(params, [*frozen, *optim.freeze])
    if "train" not in jax.tree.leaves(labels):
        raise errors.UserError(
            "config.optim.freeze matches every parameter, so nothing is trained; remove a pattern."
        )
    schedule = learning_rate(optim, total_steps, batch_size, steps_per_unit)
    decayed = jax.tree.map(lambda there: not there, _mask(params, optim.no_decay))
    steps, warmups = [], {}
    if optim.clip_norm:
        steps.append(clip_by_norm(optim.clip_norm))
    if optim.name == "sgd":
        # Weight decay is added before the momentum, as in PyTorch.
        steps.append(optax.add_decayed_weights(optim.weight_decay, decayed))
        if optim.warmup_momentum:
            constant = optax.constant_schedule(optim.momentum)
            warmups["momentum"] = _warmed_up(optim, optim.warmup_momentum, constant)
            trace = optax.inject_hyperparams(optax.trace, static_args="nesterov")
            steps.append(trace(warmups["momentum"], nesterov=optim.nesterov))
        else:
            steps.append(optax.trace(optim.momentum, nesterov=optim.nesterov))
    elif optim.name == "adamw":
        steps.append(optax.scale_by_adam(b1=optim.momentum))
        steps.append(optax.add_decayed_weights(optim.weight_decay, decayed))
    else:
        raise errors.UserError(f"config.optim.name is {optim.name!r}; it must be sgd or adamw.")
    if optim.warmup_bias_lr:
        _check_patterns(params, "biases", optim.biases)
        settled = _settled_rate(optim, total_steps, batch_size, steps_per_unit)
        warmups["lr_biases"] = _warmed_up(optim, optim.warmup_bias_lr, settled)
        rates = {
            "bias": optax.scale_by_learning_rate(warmups["lr_biases"]),
            "other": optax.scale_by_learning_rate(schedule),
        }
        of_which = {True: "bias", False: "other"}.get
        steps.append(optax.partition(rates, jax.tree.map(of_which, _mask(params, optim.biases))))
    else:
        steps.append(optax.scale_by_learning_rate(schedule))
    # Frozen leaves are split off first, so clipping norm and weight decay exclude them.
    transform = optax.partition(
        {"train": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels
    )
    return Optimizer(transform, schedule, labels, warmups)


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together, [].

    Small leaves are joined first: a network has hundreds, and compiling a kernel for each takes a
    tenth of the training step's compilation.
    """
    leaves = jax.tree.leaves(tree)
    small = [x.ravel() for x in leaves if x.size <= _SMALL]
    joined = [jnp.concatenate(small)] if small else []
    parts = joined + [x for x in leaves if x.size > _SMALL]
    return jnp.sqrt(sum(jnp.square(x).sum() for x in parts))


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients whose `norm` exceeds `largest` down to it, as optax.clip_by_global_norm."""

    def clip(updates, params=None):
        length = norm(updates)
        factor = jnp.where(length < largest, 1.0, largest / length)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates)

    return optax.stateless(clip)


def learning_rate(
    optim: config_dict.ConfigDict, total_steps: int, batch_size: int, steps_per_unit: int
) -> optax.Schedule:
    """Step -> learning rate: warm-up, then milestones, a half cosine, a line or a constant.

    Warm-up multiplies the rate of the schedule, as in mmdetection.  It is linear there and a fourth
    power in darknet's `burn_in`.
    """
    settled = _settled_rate(optim, total_steps, batch_size, steps_per_unit)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        factor = optim.warmup_factor + (1 - optim.warmup_factor) * _warmth(optim, step)
        return settled(step) * jnp.where(step < optim.warmup_steps, factor, 1.0)

    return schedule


def _settled_rate(optim, total_steps, batch_size, steps_per_unit) -> optax.Schedule:
    """The learning rate without warm-up.

    The cosine is SGDR's (arXiv:1608.03983, eq. 5) without restarts.  In YOLOv5, cosine and line
    decay from the first step (`decay_from="start"`): once per epoch in YOLOv5, at every step here.
    """
    scale = batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0
    peak = optim.lr * scale
    warmup = optim.warmup_steps
    if warmup >= total_steps:
        raise errors.UserError(
            f"config.optim.warmup_steps is {warmup}, but the run has {total_steps} steps; shorten"
            " the warm-up or train longer."
        )
    first = 0 if optim.decay_from == "start" else warmup

    def progress(step):
        return jnp.clip((step - first) / max(total_steps - first, 1), 0.0, 1.0)

    if optim.schedule == "step":
        milestones = jnp.array([m * steps_per_unit for m in optim.milestones])

        def settled(step):
            return peak * optim.milestone_factor ** (step >= milestones).sum()

    elif optim.schedule == "cosine":

        def settled(step):
            left = 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
            return peak * (optim.final_factor + (1 - optim.final_factor) * left)

    elif optim.schedule == "linear":

        def settled(step):
            left = 1 - progress(step)
            return peak * (optim.final_factor + (1 - optim.final_factor) * left)

    elif optim.schedule == "constant":

        def settled(step):
            return jnp.full((), peak)

    else:
        raise errors.UserError(
            f"config.optim.schedule is {optim.schedule!r}; it must be step, cosine, linear or"
            " constant."
        )

    return settled


def _warmed_up(optim, first: float, settled: optax.Schedule) -> optax.Schedule:
    """Warms up from the number `first` at step 0 to `settled`, which it follows afterwards.

    YOLOv5's `np.interp(step, [0, warmup_steps], [first, settled])`.
    """

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warm = first + (settled(step) - first) * _warmth(optim, step)
        return jnp.where(step < optim.warmup_steps, warm, settled(step))

    return schedule


def _warmth(optim, step: jax.Array) -> jax.Array:
    """Progress of the warm-up: 0 at step 0, 1 at its end."""
    return (step / max(optim.warmup_steps, 1)) ** optim.warmup_power


def _mask(params: Any, patterns: Sequence[str]) -> Any:
    """A tree like `params`: True where a regex matches the path `params/...`."""
    return traverse_util.path_aware_map(
        lambda path, _: _matches("/".join(("params", *path)), patterns), params
    )


def path_labels(params: Any, frozen: Sequence[str]) -> Any:
    """A tree like `params`: "frozen" where a regex matches the path `params/...`, else "train"."""
    return traverse_util.path_aware_map(
        lambda path, _: "frozen" if _matches("/".join(("params", *path)), frozen) else "train",
        params,
    )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _check_patterns(params: Any, key: str, patterns: Sequence[str]) -> None:
    """Raises a `UserError` for a pattern that matches nothing."""
    paths = list(traverse_util.flatten_dict({"params": params}, sep="/"))
    for pattern in patterns:
        if not any(re.fullmatch(pattern, p) for p in paths):
            raise errors.UserError(
                f"config.optim.{key}: {pattern!r} matches no parameter; it must match a whole path,"
                f" such as {paths[0]}."
            )

"""The contract between the parity program and a reference detector, and helpers of several."""

from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from converters import mapping


class Results(NamedTuple):
    """Everything that one run of a detlab detector gives, as NumPy arrays."""

    outputs: Any  # of the maps of prediction
    targets: Any  # {name: Targets}, of those of training
    total_loss: np.ndarray
    metrics: Mapping[str, np.ndarray]
    state: Mapping  # after the step
    gradients: Mapping | None  # of the loss, the tree of params; None where the case has none
    detections: Any  # suppressed candidates, of the image itself alone


class Adapter(NamedTuple):
    """How a kind of case is known, built, converted and read."""

    # Path in the case's JSON -> value: a case that has all of them is of this kind.
    parts: Mapping[str, Any]
    detector: str  # detlab's
    fields: Callable  # (info) -> {field of the detector: value}; UserError for what it lacks
    table: Callable[[bool], mapping.Table]  # of `bgr`
    arrays: Callable  # (case, results) -> {name in the case: the whole array, in its layout}
    losses: Mapping[str, str]  # loss of the case -> metric of the detector
    not_compared: tuple[str, ...] = ()  # regexes of recorded arrays that `arrays` may leave out
    # Regexes of train_targets.* that the network puts out, such as the boxes that a second round
    # starts from: compared as maps.
    predicted: tuple[str, ...] = ()
    # (case) -> {recorded array: mask, which broadcasts, of what a loss reads}: the rest of it means
    # nothing in the reference, and is not compared.  What is not named is compared in whole.
    readable: Callable = lambda case: {}


def maps(name: str, levels: Sequence) -> dict[str, np.ndarray]:
    """[B, H, W, D] of each level -> {"name_level": [B, D, H, W]}."""
    return {f"{name}_{i}": x.transpose(0, 3, 1, 2) for i, x in enumerate(levels)}


def split_levels(name: str, values: np.ndarray, level: np.ndarray) -> dict[str, np.ndarray]:
    """[B, N, ...] with the level [N] of each entry -> {"name_level": [B, Nl, ...]}."""
    return {f"{name}_{i}": values[:, level == i] for i in np.unique(level)}


def assigned(targets) -> np.ndarray:
    """[B, N] in mmdet's numbers: -1 ignored, 0 background, k > 0 the object k - 1."""
    return np.where(targets.status == 1, targets.matched + 1, targets.status)

"""The contract between the parity program and a reference detector, and helpers of several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.parity import cases
from detlab.converters import mapping


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
    # Files of detlab without whose `stop_gradient` gradients change: `backbones/resnet.py`.
    gradient_stops: tuple[str, ...] = ()

    def knows(self, info: Mapping) -> bool:
        """Whether a case is of this kind."""
        return all(cases.part(info, path) == value for path, value in self.parts.items())


def maps(name: str, levels: Sequence) -> dict[str, np.ndarray]:
    """[B, H, W, D] of each level -> {"name_level": [B, D, H, W]}."""
    return {f"{name}_{i}": x.transpose(0, 3, 1, 2) for i, x in enumerate(levels)}


def with_training(found: Mapping, case) -> dict[str, np.ndarray]:
    """Maps, and the same as those of training, which has others only where its norms are live."""
    if case.info["batch_norm_in_train"]["batch_statistics"]:
        return dict(found)
    return {**found, **{f"train_{name}": values for name, values in found.items()}}


def split_levels(name: str, values: np.ndarray, level: np.ndarray) -> dict[str, np.ndarray]:
    """[B, N, ...] with the level [N] of each entry -> {"name_level": [B, Nl, ...]}."""
    return {f"{name}_{i}": values[:, level == i] for i in np.unique(level)}


def split_items(name: str, items: Sequence, level: np.ndarray) -> dict[str, np.ndarray]:
    """What a call of the reference returned, each item by level: {"name.item_level": ...}."""
    found = {}
    for item, values in enumerate(items):
        found |= split_levels(f"{name}.{item}", values, level)
    return found


def object_labels(case, targets) -> np.ndarray:
    """[B, N] class of the object that each entry is matched with; only a positive one has one."""
    return np.take_along_axis(case.batch().labels, targets.matched, axis=1)


def assignment(
    name: str, targets, labels: np.ndarray | int, rows: Sequence | None = None
) -> dict[str, np.ndarray]:
    """What an assigner of mmdet gave of each image: {"name.image.gt_inds", "name.image.labels"}.

    `gt_inds` is -1 where ignored, 0 for background, and k > 0 for the object k - 1.

    Args:
      labels: [B, N], or one for all, of positives; the labels of others are -1.
      rows: of each image the entries in the reference's order; all of them where not given.
    """
    positive = targets.status == 1
    gt_inds = np.where(positive, targets.matched + 1, targets.status)
    labels = np.where(positive, labels, -1)
    found = {}
    for i in range(len(positive)):
        kept = slice(None) if rows is None else rows[i]
        found[f"{name}.{i}.gt_inds"] = gt_inds[i][kept]
        found[f"{name}.{i}.labels"] = labels[i][kept]
    return found


def delta_items(
    targets, labels: np.ndarray | int, background: int, values: np.ndarray | None = None
) -> list[np.ndarray]:
    """The four items of most of mmdet's `get_targets`: [B, N], [B, N], [B, N, D], [B, N, D].

    They are labels with `background` where there is no object, the weights of the labels, the
    deltas or other `values`, and their weights.
    """
    positive = targets.status == 1
    values = targets.values["deltas"] if values is None else values
    weights = np.broadcast_to(positive[..., None], values.shape)
    return [
        np.where(positive, labels, background),
        (targets.status >= 0).astype(np.float32),
        values,
        weights.astype(np.float32),
    ]

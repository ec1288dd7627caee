"""The contract between the parity program and a reference detector, and shared helpers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.parity import cases
from detlab.converters import mapping

# Recorded overlaps of assignments: `Targets` keeps what was derived from them.
OVERLAPS = r"train_assign\..*\.max_overlaps"


class Results(NamedTuple):
    """All results of one run of a detlab detector, as NumPy arrays."""

    outputs: Any  # from the prediction maps
    targets: Any  # {name: Targets}, from the training maps
    total_loss: np.ndarray
    metrics: Mapping[str, np.ndarray]
    state: Mapping  # after the step
    gradients: Mapping | None  # of the loss, a tree like params; None if the case has none
    detections: Any  # candidates after suppression, without other views of the image


class Adapter(NamedTuple):
    """How to recognise, build, convert and read a kind of case."""

    # Path in the case's JSON -> value: a case with all of them is of this kind.
    parts: Mapping[str, Any]
    detector: str  # detlab's
    fields: Callable  # (info) -> {field of the detector: value}; UserError for what detlab lacks
    table: Callable[[bool], mapping.Table]  # takes `bgr`
    arrays: Callable  # (case, results) -> {name in the case: whole array, in its layout}
    losses: Mapping[str, str]  # loss of the case -> metric of the detector
    extra: Mapping[str, str] = {}  # name in the case's `extra` -> leaf of the state after the step
    not_compared: tuple[str, ...] = ()  # regexes of recorded arrays that `arrays` may omit
    # Regexes of train_targets.* that are outputs of the network, such as the boxes that a second
    # round starts from; they are compared as maps.
    predicted: tuple[str, ...] = ()
    # (case) -> {recorded array: mask, broadcastable, of the entries that a loss reads}.  The other
    # entries are meaningless in the reference and not compared.  Other arrays are compared whole.
    readable: Callable = lambda case: {}
    # (case, recorded Detections of each image) -> those without the ones that come from ties which
    # the reference breaks by no rule.  The line of the count says how many are left out.
    reproducible: Callable = lambda case, recorded: recorded
    # Files of detlab whose `stop_gradient` affects gradients, such as `backbones/resnet.py`.
    gradient_stops: tuple[str, ...] = ()

    def knows(self, info: Mapping) -> bool:
        """Whether a case is of this kind."""
        return all(cases.part(info, path) == value for path, value in self.parts.items())


def maps(name: str, levels: Sequence) -> dict[str, np.ndarray]:
    """[B, H, W, D] of each level -> {"name_level": [B, D, H, W]}."""
    return {f"{name}_{i}": x.transpose(0, 3, 1, 2) for i, x in enumerate(levels)}


def with_training(found: Mapping, case) -> dict[str, np.ndarray]:
    """Adds the same maps as those of training, unless its norms are live and its maps differ."""
    if case.info["batch_norm_in_train"]["batch_statistics"]:
        return dict(found)
    return {**found, **{f"train_{name}": values for name, values in found.items()}}


def split_levels(name: str, values: np.ndarray, level: np.ndarray) -> dict[str, np.ndarray]:
    """[B, N, ...] with the level [N] of each entry -> {"name_level": [B, Nl, ...]}."""
    return {f"{name}_{i}": values[:, level == i] for i in np.unique(level)}


def split_items(name: str, items: Sequence, level: np.ndarray) -> dict[str, np.ndarray]:
    """The items that a call of the reference returned, by level: {"name.item_level": ...}."""
    found = {}
    for item, values in enumerate(items):
        found |= split_levels(f"{name}.{item}", values, level)
    return found


def object_labels(case, targets) -> np.ndarray:
    """[B, N] class of the object matched to each entry; meaningful for positive entries only."""
    return np.take_along_axis(case.batch().labels, targets.matched, axis=1)


def assignment(
    name: str, targets, labels: np.ndarray | int, rows: Sequence | None = None
) -> dict[str, np.ndarray]:
    """The result of an mmdet assigner for each image: {"name.image.gt_inds", "name.image.labels"}.

    `gt_inds` is -1 if ignored, 0 for background, and k > 0 for object k - 1.

    Args:
      labels: [B, N], or one for all, used for positives; the labels of other entries are -1.
      rows: for each image its entries in the reference's order; default: all entries.
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

    They are the labels, `background` where there is no object; the weights of the labels; the
    deltas or other `values`; and their weights.
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

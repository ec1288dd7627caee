"""What the adapters of detectors with guided anchors share: mmdet's GuidedAnchorHead."""

from collections.abc import Mapping

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.losses import locations as location_losses


def anchors(head: configs.Reader, train: configs.Reader) -> dict:
    """Fields of the locations and shapes, but for the focal loss of the former."""
    location, shape = head.child("loss_loc"), head.child("loss_shape")
    stds = configs.delta_coder(head.child("anchor_coder"))["delta_stds"]
    ious = configs.iou_thresholds(train.child("ga_assigner"), kind="ApproxMaxIoUAssigner")
    names = ("shape_positive_iou", "shape_negative_iou", "shape_min_positive_iou")
    return {
        "deform_groups": head.take("deform_groups", 4),
        "center_ratio": train.take("center_ratio"),
        "ignore_ratio": train.take("ignore_ratio"),
        "inverted_locations": True,  # a property of its code, see the detectors
        "location_weight": location.take("loss_weight", 1.0),
        **configs.focal_loss(location),
        **dict(zip(names, ious, strict=True)),
        "shape_stds": tuple(stds[2:]),  # there is no dx and no dy
        **configs.random_sampler(train.child("ga_sampler"), "shape", with_objects=False),
        "bounded_iou_beta": shape.take("beta", 0.2),
        "shape_weight": configs.loss(shape, "BoundedIoULoss", weight=None),
        "location_threshold": head.take("loc_filter_thr", 0.01),
    }


def maps(
    features, first: Mapping[str, tuple], last: Mapping[str, tuple], threshold: float
) -> dict[str, np.ndarray]:
    """Maps in training, and of each image in prediction, which takes one image at a time.

    Prediction has no scores and boxes outside likely locations.

    Args:
      features: of each level.
      first, last: the case's name of a map -> its levels, before and after the feature adaption;
        the first of `first` has the logits of the locations.
      threshold: of likely locations.
    """
    of_neck = adapter.maps("fpn", features)
    before = {k: v for name, levels in first.items() for k, v in adapter.maps(name, levels).items()}
    after = {k: v for name, levels in last.items() for k, v in adapter.maps(name, levels).items()}
    masked = {}
    for name, values in after.items():
        logits = before[f"{next(iter(first))}_{name.rpartition('_')[2]}"]
        masked[name] = np.where(1 / (1 + np.exp(-logits)) >= threshold, values, 0.0)
    found = {f"train_{name}": values for name, values in (of_neck | before | after).items()}
    for name, values in (of_neck | before | masked).items():
        for i in range(len(values)):
            found[f"image{i}_{name}"] = values[i : i + 1]
    return found


def targets(case, head: str, logits, found: Mapping, labels=None) -> dict[str, np.ndarray]:
    """The targets of locations and shapes, and the assignment of the latter.

    Args:
      head: its name in the reference.
      logits: maps of the locations.
      found: the targets of the detector.
      labels: of the objects [B, N], or one for all; default: their classes.
    """
    location, shape = found["location"], found["shape"]
    if labels is None:
        labels = adapter.object_labels(case, shape)
    return {
        **_locations(f"train_targets.{head}.ga_loc_targets.0", logits, location),
        **_shapes(f"train_targets.{head}.ga_shape_targets.0", shape),
        **adapter.assignment(f"train_assign.{head}.ga_assigner", shape, labels),
    }


def _locations(name: str, logits, location) -> dict[str, np.ndarray]:
    """Maps of targets and weights, and the number of all cells that the loss is divided by."""
    positive = location.status == 1
    weights = np.where(location.status == 0, location_losses.NEGATIVE_WEIGHT, positive)
    items = [positive.astype(np.float32), weights.astype(np.float32)]
    found = adapter.split_items(name, items, location.level[0])
    for key, values in found.items():
        level = logits[int(key.rpartition("_")[2])]
        found[key] = values.reshape(level.transpose(0, 3, 1, 2).shape)
    cells = np.float32(location.status.size / location_losses.CELLS)
    return {**found, f"{name}.{len(items)}": cells}


def _shapes(name: str, shape) -> dict[str, np.ndarray]:
    """The squares, the objects' boxes and weights of positives; number of samples."""
    positive, boxes = (shape.status == 1)[..., None], shape.values["boxes"]
    weights = np.broadcast_to(positive, boxes.shape).astype(np.float32)
    items = [np.where(positive, shape.boxes, 0.0), boxes, weights]
    counts = [np.maximum((shape.status == kind).sum(1), 1).sum() for kind in (0, 1)]
    found = adapter.split_items(name, items, shape.level[0])
    return {**found, f"{name}.{len(items)}": np.float32(sum(counts))}


def readable(case) -> dict[str, np.ndarray]:
    """Location targets are meaningless in ignored cells, whose weight is 0."""
    weights = {x: v for x, v in case.arrays.items() if ".ga_loc_targets.0.1_" in x}
    return {x.replace(".0.1_", ".0.0_"): v > 0 for x, v in weights.items()}

"""mmdet's RetinaNet with guided anchors: GARetinaHead over an FPN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_ga_retinanet
from detlab.losses import locations

LOCATIONS = "train_targets.bbox_head.ga_loc_targets.0"


def fields(info: dict) -> dict:
    """Fields of `detectors.ga_retinanet.GARetinaNet`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "RetinaNet")
        head = configs.head(model, "GARetinaHead", info)
        anchors = configs.approximate_anchors(head)
        focal = configs.focal_loss(head.child("loss_cls"))
        location = head.child("loss_loc")
        for key, name in (("gamma", "focal_gamma"), ("alpha", "focal_alpha")):
            location.expect(key, focal[name])
        location.expect("use_sigmoid", True)
        shape, box = head.child("loss_shape"), head.child("loss_bbox")
        stds = configs.delta_coder(head.child("anchor_coder"))["delta_stds"]
        configs.training(train).child("sampler").expect("type", "PseudoSampler")
        ious = configs.iou_thresholds(train.child("ga_assigner"), kind="ApproxMaxIoUAssigner")
        names = ("shape_positive_iou", "shape_negative_iou", "shape_min_positive_iou")
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(model.child("neck"), 1, "on_input", len(anchors["strides"])),
            **configs.tower(head),
            "deform_groups": head.take("deform_groups", 4),
            **anchors,
            "center_ratio": train.take("center_ratio"),
            "ignore_ratio": train.take("ignore_ratio"),
            # Properties of its code, see the detector.
            "inverted_locations": True,
            "keep_empty_boxes": True,
            "location_weight": configs.loss(location, "FocalLoss", weight=None),
            **dict(zip(names, ious, strict=True)),
            "shape_stds": tuple(stds[2:]),  # there is no dx and no dy
            **configs.random_sampler(train.child("ga_sampler"), "shape", with_objects=False),
            "bounded_iou_beta": shape.take("beta", 0.2),
            "shape_weight": configs.loss(shape, "BoundedIoULoss", weight=None),
            **configs.max_iou(train.child("assigner")),
            **focal,
            "smooth_l1_beta": box.take("beta", 1.0),
            **configs.delta_coder(head.child("bbox_coder")),
            "box_weight": configs.loss(box, "SmoothL1Loss", weight=None),
            "location_threshold": head.take("loc_filter_thr", 0.01),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps of each image, in prediction only of likely cells; assignments, items of targets."""
    outputs, targets = results.outputs, results.targets
    features = adapter.maps("fpn", outputs.features)
    first = adapter.maps("loc_pred", outputs.location_logits)
    first |= adapter.maps("shape_pred", outputs.shapes)
    last = adapter.maps("cls_score", outputs.cls_logits)
    last |= adapter.maps("bbox_pred", outputs.box_deltas)
    # Prediction takes one image at a time, and has no class and box outside likely locations.
    threshold = case.info["model_cfg"]["bbox_head"]["loc_filter_thr"]
    masked = {}
    for name, values in last.items():
        logits = first[f"loc_pred_{name.rpartition('_')[2]}"]
        masked[name] = np.where(1 / (1 + np.exp(-logits)) >= threshold, values, 0.0)
    found = {f"train_{name}": values for name, values in (features | first | last).items()}
    for name, values in (features | first | masked).items():
        for i in range(len(values)):
            found[f"image{i}_{name}"] = values[i : i + 1]
    labels = adapter.object_labels(case, targets["main"])
    items = adapter.delta_items(targets["main"], labels, case.info["num_classes"])
    name = "train_targets.bbox_head.get_targets.0"
    return {
        **found,
        **_locations(outputs, targets["location"]),
        **_shapes(case, targets["shape"]),
        **adapter.assignment("train_assign.bbox_head.assigner", targets["main"], labels),
        **adapter.split_items(name, items, targets["main"].level[0]),
        f"{name}.{len(items)}": results.metrics["normaliser"],
    }


def _locations(outputs, targets) -> dict[str, np.ndarray]:
    """Maps of targets and weights, and the number of all cells that the loss is divided by."""
    weights = np.where(targets.status == 0, locations.NEGATIVE_WEIGHT, targets.status == 1)
    items = [(targets.status == 1).astype(np.float32), weights.astype(np.float32)]
    found = adapter.split_items(LOCATIONS, items, targets.level[0])
    for name, values in found.items():
        level = outputs.location_logits[int(name.rpartition("_")[2])]
        found[name] = values.reshape(level.transpose(0, 3, 1, 2).shape)
    cells = np.float32(targets.status.size / locations.CELLS)
    return {**found, f"{LOCATIONS}.{len(items)}": cells}


def _shapes(case, targets) -> dict[str, np.ndarray]:
    """Assignment; the squares, the objects' boxes and weights of positives; number of samples."""
    name = "train_targets.bbox_head.ga_shape_targets.0"
    positive = (targets.status == 1)[..., None]
    boxes = targets.values["boxes"]
    weights = np.broadcast_to(positive, boxes.shape).astype(np.float32)
    items = [np.where(positive, targets.boxes, 0.0), boxes, weights]
    counts = [np.maximum((targets.status == kind).sum(1), 1).sum() for kind in (0, 1)]
    labels = adapter.object_labels(case, targets)
    return {
        **adapter.assignment("train_assign.bbox_head.ga_assigner", targets, labels),
        **adapter.split_items(name, items, targets.level[0]),
        f"{name}.{len(items)}": np.float32(sum(counts)),
    }


def readable(case) -> dict[str, np.ndarray]:
    """Location targets are meaningless in ignored cells, whose weight is 0."""
    weights = {x: v for x, v in case.arrays.items() if x.startswith(f"{LOCATIONS}.1_")}
    return {x.replace(".0.1_", ".0.0_"): v > 0 for x, v in weights.items()}


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "RetinaNet",
        "model_cfg.neck.type": "FPN",
        "model_cfg.bbox_head.type": "GARetinaHead",
        "model_cfg.bbox_head.loss_bbox.type": "SmoothL1Loss",
        "train_cfg.ga_assigner.type": "ApproxMaxIoUAssigner",
    },
    detector="ga_retinanet",
    fields=fields,
    table=mmdet_ga_retinanet.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_bbox": "loss/box",
        "loss_shape": "loss/shape",
        "loss_loc": "loss/location",
    },
    not_compared=(adapter.OVERLAPS,),
    readable=readable,
    gradient_stops=("backbones/resnet.py", "heads/guided_anchor.py", "detectors/ga_retinanet.py"),
)

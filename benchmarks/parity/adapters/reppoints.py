"""mmdet's RepPoints: RepPointsHead over an FPN, with or without group norms."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab import errors
from detlab.converters.tables import mmdet_reppoints


def fields(info: dict) -> dict:
    """Fields of `detectors.reppoints.RepPoints`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "RepPointsDetector")
        head, neck = configs.head(model, "RepPointsHead", info), model.child("neck")
        head.expect("center_init", True)
        head.expect("moment_mul", 0.01)
        head.expect("conv_bias", "auto")
        head.skip("init_cfg")
        strides = tuple(head.take("point_strides", (8, 16, 32, 64, 128)))
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(neck, 1, "on_input", len(strides)),
            **_norm(neck, head),
            **configs.tower(head),
            "point_width": head.take("point_feat_channels", 256),
            "num_points": head.take("num_points", 9),
            "transform": head.take("transform_method", "moment"),
            "use_grid_points": head.take("use_grid_points", False),
            "offset_gradient": head.take("gradient_mul", 0.1),
            "strides": strides,
            "base_scale": head.take("point_base_scale", 4),
            **configs.focal_loss(head.child("loss_cls")),
            **_box_losses(head.child("loss_bbox_init"), head.child("loss_bbox_refine")),
            **_assigners(train.child("init"), train.child("refine")),
            **configs.dense_test(test),
        }


def _norm(neck: configs.Reader, head: configs.Reader) -> dict:
    """Group norms in neck and head, or none in both."""
    norms = [part.child("norm_cfg") for part in (neck, head)]
    absent = [norm.empty for norm in norms]
    if all(absent):
        return {"norm": "none"}
    of_neck, of_head = (configs.group_norm(norm) for norm in norms)
    if any(absent) or of_neck != of_head:
        raise errors.UserError(
            f"{head.path}.norm_cfg and that of the neck differ; detlab has one for both."
        )
    return {"norm": "group", **of_head}


def _box_losses(init: configs.Reader, refine: configs.Reader) -> dict:
    beta = init.take("beta", 1.0)
    refine.expect("beta", beta, default=1.0)
    return {
        "smooth_l1_beta": beta,
        "init_weight": configs.loss(init, "SmoothL1Loss", weight=None),
        "refine_weight": configs.loss(refine, "SmoothL1Loss", weight=None),
    }


def _assigners(init: configs.Reader, refine: configs.Reader) -> dict:
    found = configs.max_iou(configs.training(refine).child("assigner"))
    assigner = configs.training(init).child("assigner")
    kind = assigner.take("type")
    if kind == "PointAssigner":
        return found | {
            "init_assigner": "point",
            "point_scale": assigner.take("scale", 4),
            "points_per_object": assigner.take("pos_num", 3),
        }
    if kind != "MaxIoUAssigner":
        raise errors.UserError(f"{assigner.path}.type is {kind!r}; detlab has no such assigner.")
    if configs.max_iou(assigner) != found:
        raise errors.UserError(
            f"{assigner.path} and that of refine differ; detlab has one for both."
        )
    return found | {"init_assigner": "max_iou"}


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, and the assignments and `get_targets` items of both rounds."""
    outputs = results.outputs
    found = adapter.maps("fpn", outputs.features)
    found |= adapter.maps("cls_out", outputs.cls_logits)
    found |= adapter.maps("bbox_out_refine", outputs.refine_boxes)
    # Training uses the norms of prediction, so it has the same maps; but mmdet's head returns boxes
    # only in prediction, and points in training.
    found |= adapter.maps("train_cls_out", outputs.cls_logits)
    found |= adapter.maps("train_pts_out_init", outputs.init_points)
    found |= adapter.maps("train_pts_out_refine", outputs.refine_points)
    # The first round matches points with their strides, or squares.
    kind = case.info["train_cfg"]["init"]["assigner"]["type"]
    strides = np.array(case.info["model_cfg"]["bbox_head"]["point_strides"], np.float32)
    for call, (stage, targets) in enumerate(results.targets.items()):
        proposals = targets.boxes
        if stage == "init" and kind == "PointAssigner":
            center = (proposals[..., :2] + proposals[..., 2:]) / 2
            stride = np.repeat(strides[targets.level][..., None], 2, axis=-1)
            proposals = np.concatenate([center, stride], axis=-1)
        found |= _targets(case, stage, call, targets, proposals)
    return found


def _targets(case, stage: str, call: int, targets, proposals) -> dict[str, np.ndarray]:
    """Assignment and `get_targets` items of one round."""
    labels = adapter.object_labels(case, targets)
    background, boxes = case.info["num_classes"], targets.values["boxes"]
    *items, weights = adapter.delta_items(targets, labels, background, boxes)
    items += [np.where(weights > 0, proposals, 0.0), weights]
    name = f"train_targets.bbox_head.get_targets.{call}"
    positives = (targets.status == 1).sum(1)
    return {
        **adapter.assignment(f"train_assign.bbox_head.{stage}_assigner", targets, labels),
        **adapter.split_items(name, items, targets.level[0]),
        f"{name}.{len(items)}": np.maximum(positives, 1).sum().astype(np.float32),
    }


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "RepPointsDetector",
        "model_cfg.bbox_head.type": "RepPointsHead",
    },
    detector="reppoints",
    fields=fields,
    table=mmdet_reppoints.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_pts_init": "loss/init",
        "loss_pts_refine": "loss/refine",
    },
    not_compared=(adapter.OVERLAPS,),
    predicted=(r"train_targets\.bbox_head\.get_targets\.1\.3_\d",),  # boxes of the first round
    gradient_stops=("backbones/resnet.py", "heads/reppoints.py", "ops/gradient.py"),
)

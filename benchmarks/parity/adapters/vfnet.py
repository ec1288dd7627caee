"""mmdet's VFNet: VFNetHead over an FPN, assigned by ATSS or by FCOS's ranges."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, fcos
from detlab.converters.tables import mmdet_vfnet


def fields(info: dict) -> dict:
    """Fields of `detectors.vfnet.VFNet`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "VFNet")
        head, neck = configs.head(model, "VFNetHead", info), model.child("neck")
        head.expect("center_sampling", False, default=False)
        head.expect("dcn_on_last_conv", False, default=False)
        head.expect("use_vfl", True)
        head.expect("bbox_norm_type", "reg_denom")
        neck.expect("relu_before_extra_convs", True, default=False)
        strides = tuple(head.take("strides", (8, 16, 32, 64, 128)))
        loss = head.child("loss_cls")
        configs.loss(loss, "VarifocalLoss")
        loss.expect("use_sigmoid", True)
        loss.expect("iou_weighted", True)
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(neck, 1, "on_output", len(strides)),
            **configs.tower(head),
            **configs.group_norm(head.child("norm_cfg")),
            "offset_gradient": head.take("gradient_mul", 0.1),
            "strides": strides,
            "level_limits": fcos.limits(head),
            "use_atss": head.take("use_atss", True),
            **configs.atss(configs.training(train).child("assigner")),
            "varifocal_alpha": loss.take("alpha", 0.75),
            "varifocal_gamma": loss.take("gamma", 2.0),
            "init_weight": configs.loss(head.child("loss_bbox"), "GIoULoss", weight=None),
            "refine_weight": configs.loss(head.child("loss_bbox_refine"), "GIoULoss", weight=None),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, the assignment and the items of `get_targets`."""
    outputs, targets = results.outputs, results.targets["main"]
    found = adapter.maps("fpn", outputs.features)
    found |= adapter.maps("cls_score", outputs.cls_logits)
    found |= adapter.maps("bbox_pred_refine", outputs.refine_distances)
    found = adapter.with_training(found, case)
    # mmdet's head returns the boxes of the first round only in training.
    found |= adapter.maps("train_bbox_pred", outputs.init_distances)
    labels, background = adapter.object_labels(case, targets), case.info["num_classes"]
    # mmdet encodes a box of zeros where there is no object.
    points = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    nothing = np.concatenate([points, -points], axis=-1)
    distances = np.where(targets.status[..., None] == 1, targets.values["distances"], nothing)
    items = adapter.delta_items(targets, labels, background, distances)
    name = "train_targets.bbox_head.get_targets.0"
    # mmdet concatenates the points of a level over all images, and the levels of all weights.
    levels = {
        key: values.reshape(-1, *values.shape[2:])
        for key, values in adapter.split_items(name, items, targets.level[0]).items()
    }
    weights = {
        f"{name}.{item}": np.concatenate(
            [levels.pop(f"{name}.{item}_{i}").ravel() for i in range(len(outputs.features))]
        )
        for item in (1, 3)
    }
    assigned = adapter.assignment("train_assign.bbox_head.assigner", targets, labels)
    return found | levels | weights | assigned


ADAPTER = adapter.Adapter(
    parts={"model_cfg.type": "VFNet", "model_cfg.bbox_head.type": "VFNetHead"},
    detector="vfnet",
    fields=fields,
    table=mmdet_vfnet.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_bbox": "loss/init",
        "loss_bbox_rf": "loss/refine",
    },
    not_compared=(adapter.OVERLAPS,),
    gradient_stops=(
        "backbones/resnet.py",
        "detectors/vfnet.py",
        "heads/vfnet.py",
        "ops/gradient.py",
    ),
)

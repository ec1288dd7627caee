"""mmdet's GFL: GFLHead over an FPN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_gfl


def fields(info: dict) -> dict:
    """Fields of `detectors.gfl.GFL`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "GFL")
        head = configs.head(model, "GFLHead", info)
        loss = head.child("loss_cls")
        configs.loss(loss, "QualityFocalLoss")
        loss.expect("use_sigmoid", True, default=True)
        squares = configs.square_anchor(head.child("anchor_generator"))
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(model.child("neck"), 1, "on_output", len(squares["strides"])),
            **configs.tower(head),
            **configs.group_norm(head.child("norm_cfg")),
            "max_distance": head.take("reg_max", 16),
            **squares,
            **configs.atss(configs.training(train).child("assigner")),
            "quality_beta": loss.take("beta", 2.0),
            "box_weight": configs.loss(head.child("loss_bbox"), "GIoULoss", weight=None),
            "distribution_weight": configs.loss(
                head.child("loss_dfl"), "DistributionFocalLoss", weight=None
            ),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, the assignment and the items of `get_targets`."""
    outputs, targets = results.outputs, results.targets["main"]
    found = adapter.maps("fpn", outputs.features)
    found |= adapter.maps("cls_score", outputs.cls_logits)
    found |= adapter.maps("bbox_pred", outputs.distance_logits)
    labels, background = adapter.object_labels(case, targets), case.info["num_classes"]
    items = adapter.delta_items(targets, labels, background, targets.values["gt_boxes"])
    name = "train_targets.bbox_head.get_targets.0"
    return {
        **adapter.with_training(found, case),
        **adapter.assignment("train_assign.bbox_head.assigner", targets, labels),
        **adapter.split_items(name, [targets.boxes, *items], targets.level[0]),
        f"{name}.{1 + len(items)}": results.metrics["normaliser"],
    }


ADAPTER = adapter.Adapter(
    parts={"model_cfg.type": "GFL", "model_cfg.bbox_head.type": "GFLHead"},
    detector="gfl",
    fields=fields,
    table=mmdet_gfl.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_bbox": "loss/box",
        "loss_dfl": "loss/distribution",
    },
    not_compared=(adapter.OVERLAPS,),
    gradient_stops=("backbones/resnet.py", "detectors/gfl.py"),
)

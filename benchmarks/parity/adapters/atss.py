"""mmdet's ATSS: ATSSHead with focal, GIoU and centerness losses over an FPN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_atss

Reader = configs.Reader


def fields(info: dict) -> dict:
    """Fields of `detectors.atss.ATSS`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "ATSS")
        head = configs.head(model, "ATSSHead", info)
        configs.cross_entropy(head.child("loss_centerness"), sigmoid=True)
        return {
            **network(info, model, head),
            **configs.atss(configs.training(train).child("assigner")),
            **configs.dense_test(test),
        }


def network(info: dict, model: Reader, head: Reader) -> dict:
    """The fields of network, anchors, and losses of classes and boxes, which PAA shares."""
    head.expect("reg_decoded_bbox", True)
    anchor = configs.square_anchor(head.child("anchor_generator"))
    return {
        **configs.inputs(info, model),
        **configs.resnet(model.child("backbone")),
        **configs.fpn(model.child("neck"), 1, "on_output", len(anchor["strides"])),
        **configs.tower(head),
        **configs.group_norm(head.child("norm_cfg")),
        **anchor,
        **configs.delta_coder(head.child("bbox_coder")),
        **configs.focal_loss(head.child("loss_cls")),
        "box_weight": configs.loss(head.child("loss_bbox"), "GIoULoss", weight=None),
    }


def maps(case, outputs, third: str) -> dict[str, np.ndarray]:
    """Feature maps and raw maps, of prediction and training; `third` is the last map's name."""
    found = (
        adapter.maps("fpn", outputs.features)
        | adapter.maps("cls_score", outputs.cls_logits)
        | adapter.maps("bbox_pred", outputs.box_deltas)
        | adapter.maps(third, outputs.centerness)
    )
    return adapter.with_training(found, case)


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, assignment, and the items of `get_targets`."""
    targets = results.targets["main"]
    labels, background = adapter.object_labels(case, targets), case.info["num_classes"]
    items = adapter.delta_items(targets, labels, background, targets.values["gt_boxes"])
    name = "train_targets.bbox_head.get_targets.0"
    return {
        **maps(case, results.outputs, "centerness"),
        **adapter.assignment("train_assign.bbox_head.assigner", targets, labels),
        **adapter.split_items(name, [targets.boxes, *items], targets.level[0]),
        f"{name}.{1 + len(items)}": results.metrics["normaliser"],
    }


ADAPTER = adapter.Adapter(
    parts={"model_cfg.type": "ATSS", "model_cfg.bbox_head.type": "ATSSHead"},
    detector="atss",
    fields=fields,
    table=mmdet_atss.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_bbox": "loss/box",
        "loss_centerness": "loss/centerness",
    },
    not_compared=(adapter.OVERLAPS,),
    gradient_stops=("backbones/resnet.py",),
)

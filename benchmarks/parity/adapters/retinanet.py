"""mmdet's RetinaNet: RetinaHead with focal and L1 loss over an FPN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_retinanet

Reader = configs.Reader


def fields(info: dict) -> dict:
    """Fields of `detectors.retinanet.RetinaNet`."""
    with configs.readers(info) as (model, train, test):
        head = configs.head(model, "RetinaHead", info)
        return {
            **all_but_losses(info, model, head, train, test),
            **configs.focal_loss(head.child("loss_cls")),
            "box_weight": configs.loss(head.child("loss_bbox"), "L1Loss", weight=None),
        }


def all_but_losses(
    info: dict,
    model: Reader,
    head: Reader,
    train: Reader,
    test: Reader,
    neck: Reader | None = None,
) -> dict:
    """The fields that RetinaNets with other losses share; `neck`: the FPN, by default all of it."""
    model.expect("type", "RetinaNet")
    anchors = configs.octave_anchors(head.child("anchor_generator"))
    num_levels = len(anchors["strides"])
    sampler = configs.training(train).child("sampler")
    sampler.expect("type", "PseudoSampler")  # takes every anchor
    return {
        **configs.inputs(info, model),
        **configs.resnet(model.child("backbone")),
        **configs.fpn(neck or model.child("neck"), 1, "on_input", num_levels),
        **configs.tower(head),
        **anchors,
        **configs.delta_coder(head.child("bbox_coder")),
        **configs.max_iou(train.child("assigner")),
        **configs.dense_test(test),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, assignment, and the items of `get_targets`."""
    outputs, targets = results.outputs, results.targets["main"]
    found = (
        adapter.maps("fpn", outputs.features)
        | adapter.maps("cls_score", outputs.cls_logits)
        | adapter.maps("bbox_pred", outputs.box_deltas)
    )
    labels = adapter.object_labels(case, targets)
    items = adapter.delta_items(targets, labels, case.info["num_classes"])
    name = "train_targets.bbox_head.get_targets.0"
    return {
        **adapter.with_training(found, case),
        **adapter.assignment("train_assign.bbox_head.assigner", targets, labels),
        **adapter.split_items(name, items, targets.level[0]),
        f"{name}.{len(items)}": results.metrics["normaliser"],
    }


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "RetinaNet",
        "model_cfg.neck.type": "FPN",
        "model_cfg.bbox_head.type": "RetinaHead",
        "model_cfg.bbox_head.loss_cls.type": "FocalLoss",
        "model_cfg.bbox_head.loss_bbox.type": "L1Loss",
        "train_cfg.assigner.type": "MaxIoUAssigner",
    },
    detector="retinanet",
    fields=fields,
    table=mmdet_retinanet.table,
    arrays=arrays,
    losses={"loss_cls": "loss/cls", "loss_bbox": "loss/box"},
    not_compared=(adapter.OVERLAPS,),
    gradient_stops=("backbones/resnet.py",),
)

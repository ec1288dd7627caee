"""mmdet's RetinaNet with SABL: SABLRetinaHead over an FPN, with or without group norms."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_sabl_retinanet


def fields(info: dict) -> dict:
    """Fields of `detectors.sabl_retinanet.SABLRetinaNet`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "RetinaNet")
        head = configs.head(model, "SABLRetinaHead", info)
        anchors = configs.approximate_anchors(head)
        norm, offset = head.child("norm_cfg"), head.child("loss_bbox_reg")
        configs.training(train).child("sampler").expect("type", "PseudoSampler")
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(model.child("neck"), 1, "on_input", len(anchors["strides"])),
            **configs.tower(head),
            **({} if norm.empty else {"norm": "group", **configs.group_norm(norm)}),
            **anchors,
            **configs.bucketing_coder(head.child("bbox_coder")),
            **configs.max_iou(train.child("assigner"), kind="ApproxMaxIoUAssigner"),
            **configs.focal_loss(head.child("loss_cls")),
            "smooth_l1_beta": offset.take("beta", 1.0),
            "bucket_weight": configs.cross_entropy(
                head.child("loss_bbox_cls"), sigmoid=True, weight=None
            ),
            "offset_weight": configs.loss(offset, "SmoothL1Loss", weight=None),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, assignment, and the items of `get_targets`."""
    outputs, targets = results.outputs, results.targets["main"]
    found = adapter.maps("fpn", outputs.features)
    found |= adapter.maps("cls_score", outputs.cls_logits)
    for part, levels in enumerate((outputs.bucket_logits, outputs.bucket_offsets)):
        found |= {f"{k}_{part}": v for k, v in adapter.maps("bbox_pred", levels).items()}
    labels = adapter.object_labels(case, targets)
    values = {k: v.reshape(*v.shape[:2], -1) for k, v in targets.values.items()}
    items = adapter.delta_items(targets, labels, case.info["num_classes"], values["labels"])[:2]
    names = ("labels", "label_weights", "offsets", "offset_weights")
    items += [values[name] for name in names]
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
        "model_cfg.bbox_head.type": "SABLRetinaHead",
    },
    detector="sabl_retinanet",
    fields=fields,
    table=mmdet_sabl_retinanet.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_bbox_cls": "loss/bucket",
        "loss_bbox_reg": "loss/offset",
    },
    not_compared=(adapter.OVERLAPS,),
    gradient_stops=("backbones/resnet.py",),
)

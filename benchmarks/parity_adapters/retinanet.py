"""mmdet's RetinaNet: RetinaHead with focal and L1 loss over an FPN."""

import numpy as np

from benchmarks import reference_configs
from benchmarks.parity_adapters import adapter
from converters.tables import mmdet_retinanet


def fields(info: dict) -> dict:
    """Fields of `detectors.retinanet.RetinaNet`."""
    model, train, test = reference_configs.readers(info)
    model.expect("type", "RetinaNet")
    head = model.child("bbox_head")
    head.expect("type", "RetinaHead")
    head.expect("num_classes", info["num_classes"])
    head.skip("in_channels")  # follows from the neck
    anchors = reference_configs.octave_anchors(head.child("anchor_generator"))
    num_levels = len(anchors["strides"])
    box_loss = head.child("loss_bbox")
    box_loss.expect("type", "L1Loss")
    train.expect("allowed_border", -1)
    train.expect("pos_weight", -1)
    train.skip("debug")
    train.child("sampler").expect("type", "PseudoSampler")  # takes every anchor
    found = {
        "num_classes": info["num_classes"],
        **reference_configs.preprocessor(model.child("data_preprocessor")),
        **reference_configs.resnet(model.child("backbone")),
        **reference_configs.fpn(model.child("neck"), 1, "on_input", num_levels),
        "head_convs": head.take("stacked_convs", 4),
        "head_width": head.take("feat_channels", 256),
        **anchors,
        **reference_configs.delta_coder(head.child("bbox_coder")),
        **reference_configs.focal_loss(head.child("loss_cls")),
        "box_weight": box_loss.take("loss_weight", 1.0),
        **reference_configs.max_iou(train.child("assigner")),
        **reference_configs.dense_test(test),
    }
    for reader in (model, train, test):
        reader.finish()
    return found


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, assignment, and the items of `get_targets`."""
    outputs, targets = results.outputs, results.targets["main"]
    found = (
        adapter.maps("fpn", outputs.features)
        | adapter.maps("cls_score", outputs.cls_logits)
        | adapter.maps("bbox_pred", outputs.box_deltas)
    )
    if not case.info["batch_norm_in_train"]["batch_statistics"]:  # so training has the same maps
        found |= {f"train_{name}": values for name, values in found.items()}
    gt_labels = np.take_along_axis(case.batch().labels, targets.matched, axis=1)  # [B, N]
    positive = targets.status == 1
    for i, gt_inds in enumerate(adapter.assigned(targets)):
        name = f"train_assign.bbox_head.assigner.{i}"
        found[f"{name}.gt_inds"] = gt_inds
        found[f"{name}.labels"] = np.where(positive[i], gt_labels[i], -1)
    four = np.broadcast_to(positive[..., None], (*positive.shape, 4))
    items = (
        np.where(positive, gt_labels, case.info["num_classes"]),
        (targets.status >= 0).astype(np.float32),
        targets.values["deltas"],
        four.astype(np.float32),
    )
    name = "train_targets.bbox_head.get_targets.0"
    for item, values in enumerate(items):
        found |= adapter.split_levels(f"{name}.{item}", values, targets.level[0])
    found[f"{name}.{len(items)}"] = results.metrics["normaliser"]
    return found


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
    not_compared=(r"train_assign\..*\.max_overlaps",),  # `Targets` keeps what follows from them
)

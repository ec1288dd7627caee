"""mmdet's YOLOV3 with a Darknet-53; the reference counts levels from the coarsest."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab import errors
from detlab.converters.tables import mmdet_yolov3
from detlab.detectors import yolov3


def fields(info: dict) -> dict:
    """Fields of `detectors.yolov3.YOLOv3`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "YOLOV3")
        head = configs.head(model, "YOLOV3Head", info)
        head.expect("featmap_strides", list(yolov3.STRIDES[::-1]), default=[32, 16, 8])
        head.expect("one_hot_smoother", 0.0, default=0.0)
        anchors = head.child("anchor_generator")
        anchors.expect("type", "YOLOAnchorGenerator")
        anchors.expect("strides", list(yolov3.STRIDES[::-1]))
        head.child("bbox_coder").expect("type", "YOLOBBoxCoder")
        return {
            **configs.inputs(info, model),
            **_darknet(model.child("backbone")),
            **_neck(model.child("neck")),
            "head_width": _finest(head, "out_channels"),
            "anchor_sizes": tuple(
                tuple(tuple(size) for size in level) for level in anchors.take("base_sizes")[::-1]
            ),
            "class_weight": _summed_loss(head.child("loss_cls"), "CrossEntropyLoss"),
            "objectness_weight": _summed_loss(head.child("loss_conf"), "CrossEntropyLoss"),
            "xy_weight": _summed_loss(head.child("loss_xy"), "CrossEntropyLoss"),
            "wh_weight": _summed_loss(head.child("loss_wh"), "MSELoss"),
            "summed_images": float(info["input_shape"][0]),
            **_grid(train.child("assigner")),
            **_prediction(test),
        }


def _darknet(config: configs.Reader) -> dict:
    config.expect("type", "Darknet")
    config.expect("depth", 53)
    config.expect("out_indices", [3, 4, 5])
    config.expect("frozen_stages", -1, default=-1)
    config.skip("init_cfg")
    return {"backbone_norm": "stored" if config.take("norm_eval", True) else "batch"}


def _neck(config: configs.Reader) -> dict:
    config.expect("type", "YOLOV3Neck")
    config.expect("num_scales", 3)
    config.skip("in_channels")  # follows from the backbone; a wrong one fails to convert
    return {"neck_width": _finest(config, "out_channels")}


def _finest(config: configs.Reader, key: str) -> int:
    """The last of three widths, coarsest first; each must be twice the next."""
    widths = config.take(key)
    if list(widths) != [4 * widths[-1], 2 * widths[-1], widths[-1]]:
        raise errors.UserError(
            f"{config.path}.{key} is {widths!r}; detlab needs each width to be twice the next."
        )
    return widths[-1]


def _summed_loss(config: configs.Reader, kind: str) -> float:
    config.expect("reduction", "sum", default="mean")
    if kind == "CrossEntropyLoss":
        return configs.cross_entropy(config, sigmoid=True, weight=None)
    return configs.loss(config, kind, weight=None)


def _grid(config: configs.Reader) -> dict:
    config.expect("type", "GridAssigner")
    config.expect("gt_max_assign_all", True, default=True)
    return {
        "positive_iou": config.take("pos_iou_thr"),
        "negative_iou": config.take("neg_iou_thr"),
        "min_positive_iou": float(config.take("min_pos_iou", 0.0)),
    }


def _prediction(config: configs.Reader) -> dict:
    config.expect("min_bbox_size", 0, default=-1)
    return {
        "num_candidates": config.take("nms_pre"),
        "objectness_threshold": config.take("conf_thr"),
        **configs.detections(config),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, assignment, and the items of `get_targets`, coarsest first."""
    outputs, targets = results.outputs, results.targets["main"]
    found = adapter.maps("fpn", outputs.features[::-1])
    found |= adapter.maps("pred_map", outputs.predictions[::-1])
    level = targets.level[0]
    coarsest_first = np.argsort(-level, kind="stable")
    level = level.max() - level[coarsest_first]  # as the reference counts

    labels = adapter.object_labels(case, targets)
    rows = [coarsest_first] * len(labels)
    found |= adapter.assignment("train_assign.bbox_head.assigner", targets, labels, rows)
    positive = (targets.status == 1)[..., None]
    one_hot = labels[..., None] == np.arange(case.info["num_classes"])
    target_map = np.concatenate([targets.values["xywh"], positive, one_hot], axis=-1)
    items = (np.where(positive, target_map, 0.0), (targets.status == 0).astype(np.uint8))
    items = [values[:, coarsest_first] for values in items]
    return found | adapter.split_items("train_targets.bbox_head.get_targets.0", items, level)


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "YOLOV3",
        "model_cfg.backbone.type": "Darknet",
        "model_cfg.bbox_head.type": "YOLOV3Head",
        "train_cfg.assigner.type": "GridAssigner",
    },
    detector="yolov3",
    fields=fields,
    table=mmdet_yolov3.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_conf": "loss/objectness",
        "loss_xy": "loss/xy",
        "loss_wh": "loss/wh",
    },
    not_compared=(adapter.OVERLAPS,),
)

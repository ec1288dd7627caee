"""mmdet's RetinaNet with guided anchors: GARetinaHead over an FPN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, guided
from detlab.converters.tables import mmdet_ga_retinanet

HEAD = "bbox_head"


def fields(info: dict) -> dict:
    """Fields of `detectors.ga_retinanet.GARetinaNet`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "RetinaNet")
        head = configs.head(model, "GARetinaHead", info)
        anchors = configs.approximate_anchors(head)
        focal = configs.focal_loss(head.child("loss_cls"))
        of_anchors, box = guided.anchors(head, train), head.child("loss_bbox")
        configs.equal([focal, {key: of_anchors[key] for key in focal}], head)
        configs.training(train).child("sampler").expect("type", "PseudoSampler")
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(model.child("neck"), 1, "on_input", len(anchors["strides"])),
            **configs.tower(head),
            **anchors,
            **of_anchors,
            "keep_empty_boxes": True,  # a property of its code, see the detector
            **configs.max_iou(train.child("assigner")),
            "smooth_l1_beta": box.take("beta", 1.0),
            **configs.delta_coder(head.child("bbox_coder")),
            "box_weight": configs.loss(box, "SmoothL1Loss", weight=None),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, assignments, and the items of targets."""
    outputs, targets = results.outputs, results.targets
    found = guided.maps(
        outputs.features,
        {"loc_pred": outputs.location_logits, "shape_pred": outputs.shapes},
        {"cls_score": outputs.cls_logits, "bbox_pred": outputs.box_deltas},
        case.info["model_cfg"][HEAD]["loc_filter_thr"],
    )
    labels = adapter.object_labels(case, targets["main"])
    items = adapter.delta_items(targets["main"], labels, case.info["num_classes"])
    name = "train_targets.bbox_head.get_targets.0"
    return {
        **found,
        **guided.targets(case, HEAD, outputs.location_logits, targets),
        **adapter.assignment("train_assign.bbox_head.assigner", targets["main"], labels),
        **adapter.split_items(name, items, targets["main"].level[0]),
        f"{name}.{len(items)}": results.metrics["normaliser"],
    }


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
    readable=guided.readable,
    gradient_stops=("backbones/resnet.py", "heads/guided_anchor.py", "detectors/ga_retinanet.py"),
)

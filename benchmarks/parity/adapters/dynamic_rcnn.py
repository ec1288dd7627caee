"""mmdet's Dynamic R-CNN: a DynamicRoIHead on Faster R-CNN's RPN and FPN."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import faster_rcnn
from detlab.converters.tables import mmdet_dynamic_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.dynamic_rcnn.DynamicRCNN`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rcnn = model.child("roi_head"), configs.training(train.child("rcnn"))
        roi.expect("type", "DynamicRoIHead")
        head = configs.head(roi, "Shared2FCBBoxHead", info)
        box, dynamic = head.child("loss_bbox"), rcnn.child("dynamic_rcnn")
        configs.loss(box, "SmoothL1Loss")
        beta = dynamic.take("initial_beta")
        box.expect("beta", beta, default=1.0)
        return {
            **faster_rcnn.all_but_box_head(info, model, roi, train, test),
            **faster_rcnn.box_head(head),
            **faster_rcnn.box_training(rcnn),
            "update_interval": dynamic.take("update_iter_interval"),
            "iou_rank": dynamic.take("iou_topk"),
            "delta_rank": dynamic.take("beta_topk"),
            "lowest_iou": dynamic.take("initial_iou"),
            "highest_beta": beta,
        }


BASE = faster_rcnn.ADAPTER
CHANGED = {
    "model_cfg.roi_head.type": "DynamicRoIHead",
    "model_cfg.roi_head.bbox_head.loss_bbox.type": "SmoothL1Loss",
}
ADAPTER = BASE._replace(
    parts={**BASE.parts, **CHANGED},
    detector="dynamic_rcnn",
    fields=fields,
    table=mmdet_dynamic_rcnn.table,
    extra={
        "pos_iou_thr_after": "loss_state/iou",
        "smooth_l1_beta_after": "loss_state/beta",
    },
)

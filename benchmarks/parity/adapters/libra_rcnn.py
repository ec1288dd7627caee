"""mmdet's Libra R-CNN: Faster R-CNN with an FPN and a BFP, balanced samplers and balanced L1."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import faster_rcnn
from detlab.converters.tables import mmdet_libra_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.libra_rcnn.LibraRCNN`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rcnn = model.child("roi_head"), configs.training(train.child("rcnn"))
        roi.expect("type", "StandardRoIHead")
        head = configs.head(roi, "Shared2FCBBoxHead", info)
        neck, balance = model.children("neck", 2)
        shared = faster_rcnn.all_but_box_head(info, model, roi, train, test, neck)
        box = head.child("loss_bbox")
        configs.loss(box, "BalancedL1Loss")
        return {
            **shared,
            **configs.bfp(balance, len(shared["strides"])),
            **faster_rcnn.box_head(head),
            **configs.balanced_l1(box),
            "positive_iou": configs.roi_assigner(rcnn.child("assigner")),
            **combined_sampler(rcnn.child("sampler")),
        }


def combined_sampler(config: configs.Reader) -> dict:
    """CombinedSampler of balanced positives and negatives, which also draws from the objects."""
    config.expect("type", "CombinedSampler")
    config.expect("add_gt_as_proposals", True)
    positives, negatives = config.child("pos_sampler"), config.child("neg_sampler")
    positives.expect("type", "InstanceBalancedPosSampler")
    negatives.expect("type", "IoUBalancedNegSampler")
    negatives.expect("floor_thr", -1)
    negatives.expect("floor_fraction", 0)
    return {
        "iou_bins": negatives.take("num_bins"),
        "box_samples": config.take("num"),
        "box_positive_fraction": config.take("pos_fraction"),
    }


BASE = faster_rcnn.ADAPTER
CHANGED = {
    "model_cfg.neck.0.type": "FPN",
    "model_cfg.neck.1.type": "BFP",
    "model_cfg.roi_head.bbox_head.loss_bbox.type": "BalancedL1Loss",
    "train_cfg.rcnn.sampler.type": "CombinedSampler",
}
ADAPTER = BASE._replace(
    parts={k: v for k, v in BASE.parts.items() if k != "model_cfg.neck.type"} | CHANGED,
    detector="libra_rcnn",
    fields=fields,
    table=mmdet_libra_rcnn.table,
)

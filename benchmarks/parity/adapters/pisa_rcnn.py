"""mmdet's Faster R-CNN with PISA: a PISARoIHead and a ranked sampler on Faster R-CNN's parts."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, faster_rcnn
from detlab.converters.tables import mmdet_pisa_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.pisa_rcnn.PISARCNN`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rcnn = model.child("roi_head"), configs.training(train.child("rcnn"))
        roi.expect("type", "PISARoIHead")
        head = configs.head(roi, "Shared2FCBBoxHead", info)
        box = head.child("loss_bbox")
        configs.loss(box, "SmoothL1Loss")
        return {
            **faster_rcnn.all_but_box_head(info, model, roi, train, test),
            **faster_rcnn.box_head(head),
            "box_beta": box.take("beta", 1.0),
            "positive_iou": configs.roi_assigner(rcnn.child("assigner")),
            **ranked_sampler(rcnn.child("sampler")),
            **configs.pisa(rcnn),
        }


def ranked_sampler(config: configs.Reader) -> dict:
    """ScoreHLRSampler, which also draws from the objects."""
    config.expect("type", "ScoreHLRSampler")
    config.expect("neg_pos_ub", -1, default=-1)
    config.expect("add_gt_as_proposals", True, default=True)
    return {
        "box_samples": config.take("num"),
        "box_positive_fraction": config.take("pos_fraction"),
        "isr_negative_k": config.take("k", 0.5),
        "isr_negative_bias": config.take("bias", 0.0),
        "rank_score": config.take("score_thr", 0.05),
        "rank_iou": config.take("iou_thr", 0.5),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Those of Faster R-CNN, and what the sampler of each image sees: negatives and their scores.

    The reference lists negatives by their rank, so the RoIs show the ranks.
    """
    outputs, box = results.outputs, results.targets["box"]
    found, kept = faster_rcnn.first_stage(case, results)
    predicted = outputs.cls_logits, outputs.box_deltas
    found |= faster_rcnn.box_outputs(0, outputs.proposals.boxes, predicted, kept)
    images = len(kept)
    for i in range(images):
        index, negative = box.values["index"][i], box.status[i] == 0
        rows = [kept[i][np.isin(kept[i], index[negative])] if j == i else [] for j in range(images)]
        negatives = faster_rcnn.box_outputs(i, outputs.proposals.boxes, predicted, rows)
        negatives[f"rois_{i}"][:, 0] = 0  # the only image of its call
        found |= {f"train_{name}": values for name, values in negatives.items()}
    names = "bbox_assigner", "bbox_head"
    of_box, _ = faster_rcnn.box_targets(case, box, kept, images, *names, ranked=True)
    return found | of_box


BASE = faster_rcnn.ADAPTER
CHANGED = {
    "model_cfg.roi_head.type": "PISARoIHead",
    "model_cfg.roi_head.bbox_head.loss_bbox.type": "SmoothL1Loss",
    "train_cfg.rcnn.sampler.type": "ScoreHLRSampler",
}
ADAPTER = BASE._replace(
    parts={**BASE.parts, **CHANGED},
    detector="pisa_rcnn",
    fields=fields,
    table=mmdet_pisa_rcnn.table,
    arrays=arrays,
    losses={**BASE.losses, "loss_carl": "loss/carl"},
    not_compared=(adapter.OVERLAPS, r"train_roi_(cls_score|bbox_pred)_2"),
    gradient_stops=(*BASE.gradient_stops, "losses/pisa.py"),
)

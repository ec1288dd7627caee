"""mmdet's Faster R-CNN with guided anchors: GARPNHead, the rest as in Faster R-CNN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, faster_rcnn, guided
from detlab.converters.tables import mmdet_ga_rcnn

HEAD = "rpn_head"


def fields(info: dict) -> dict:
    """Fields of `detectors.ga_rcnn.GARCNN`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rcnn = model.child("roi_head"), configs.training(train.child("rcnn"))
        roi.expect("type", "StandardRoIHead")
        head = configs.head(roi, "Shared2FCBBoxHead", info)
        configs.loss(head.child("loss_bbox"), "L1Loss")
        first = rpn(model.child("rpn_head"), train.child("rpn"))
        return {
            **faster_rcnn.all_but_box_head(info, model, roi, train, test, first=first),
            **faster_rcnn.box_head(head),
            **faster_rcnn.box_training(rcnn),
        }


def rpn(head: configs.Reader, train: configs.Reader) -> dict:
    """GARPNHead and its training."""
    head.expect("type", "GARPNHead")
    head.skip("in_channels")  # follows from the neck
    anchors = configs.approximate_anchors(head)
    configs.cross_entropy(head.child("loss_cls"), sigmoid=True)
    box = head.child("loss_bbox")
    configs.loss(box, "SmoothL1Loss")
    return {
        "rpn_width": head.take("feat_channels", 256),
        "strides": anchors["strides"],
        "anchor_scale": float(anchors["octave_base_scale"]),
        "scales_per_octave": anchors["scales_per_octave"],
        "aspect_ratios": anchors["aspect_ratios"],
        **guided.anchors(head, train),
        "rpn_delta_stds": configs.delta_coder(head.child("bbox_coder"))["delta_stds"],
        "rpn_box_beta": box.take("beta", 1.0),
        **configs.rpn_training(train),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, proposals, RoIs and predictions for them, assignments, and the items of targets.

    Training has other proposals than prediction, whose locations are likely.  As all of them are
    sampled, the targets of the box head list them, without their scores.
    """
    outputs, targets = results.outputs, results.targets
    found = guided.maps(
        outputs.features,
        {"rpn_loc": outputs.location_logits, "rpn_shape": outputs.shapes},
        {"rpn_cls": outputs.rpn_logits, "rpn_bbox": outputs.rpn_deltas},
        case.info["model_cfg"][HEAD]["loc_filter_thr"],
    )
    found |= guided.targets(case, HEAD, outputs.location_logits, targets, labels=0)
    for i, valid in enumerate(outputs.proposals.valid):  # the reference takes one at a time
        rows = [np.flatnonzero(valid)]
        heads = outputs.cls_logits[i : i + 1], outputs.box_deltas[i : i + 1]
        of_image = faster_rcnn.box_outputs(0, outputs.proposals.boxes[i : i + 1], heads, rows)
        of_image["proposals_0"] = outputs.proposals.boxes[i, valid]
        of_image["proposal_scores_0"] = outputs.proposals.scores[i, valid]
        found |= {f"image{i}_{name}": values for name, values in of_image.items()}

    box, count = targets["box"], targets["box"].boxes.shape[1] - case.batch().boxes.shape[1]
    kept = []
    for i, index in enumerate(box.values["index"]):
        rows = np.flatnonzero((box.status[i] >= 0) & (index < count))
        rows = rows[np.argsort(index[rows])]
        kept.append(index[rows])
        found[f"train_proposals_{i}"] = box.boxes[i, rows]
    of_box, _ = faster_rcnn.box_targets(case, box, kept, 0, "bbox_assigner", "bbox_head")
    return {**found, **faster_rcnn.rpn_targets(case, targets["rpn"]), **of_box}


BASE = faster_rcnn.ADAPTER
ADAPTER = BASE._replace(
    parts={**BASE.parts, "model_cfg.rpn_head.type": "GARPNHead"},
    detector="ga_rcnn",
    fields=fields,
    table=mmdet_ga_rcnn.table,
    arrays=arrays,
    losses={
        **BASE.losses,
        "rpn_loss_anchor_loc": "loss/location",
        "rpn_loss_anchor_shape": "loss/shape",
    },
    not_compared=(*BASE.not_compared, r"train_proposal_scores_\d+"),
    readable=guided.readable,
    gradient_stops=(*BASE.gradient_stops, "heads/guided_anchor.py"),
)

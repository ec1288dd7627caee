"""mmdet's Faster R-CNN: RPNHead and Shared2FCBBoxHead over an FPN."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab import errors
from detlab.converters.tables import mmdet_faster_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.faster_rcnn.FasterRCNN`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rpn = model.child("roi_head"), model.child("rpn_head")
        roi.expect("type", "StandardRoIHead")
        head = configs.head(roi, "Shared2FCBBoxHead", info)
        head.expect("roi_feat_size", 7)
        head.expect("reg_class_agnostic", False, default=False)
        configs.cross_entropy(head.child("loss_cls"), sigmoid=False)
        for part in (rpn, head):
            configs.loss(part.child("loss_bbox"), "L1Loss")
        rpn_fields = configs.rpn(rpn)
        rcnn = configs.training(train.child("rcnn"))
        in_training = configs.proposals(train.child("rpn_proposal"), "train_proposals")
        in_prediction = configs.proposals(test.child("rpn"), "proposals")
        if in_training["proposal_nms_iou"] != in_prediction["proposal_nms_iou"]:
            raise errors.UserError(
                f"{test.path}.rpn.nms differs from training; detlab has one for both."
            )
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(model.child("neck"), 0, False, len(rpn_fields["strides"])),
            **rpn_fields,
            **configs.roi_extractor(roi.child("bbox_roi_extractor")),
            "box_width": head.take("fc_out_channels"),
            **configs.delta_coder(head.child("bbox_coder")),
            **configs.rpn_training(train.child("rpn")),
            **in_training,
            **in_prediction,
            "positive_iou": configs.roi_assigner(rcnn.child("assigner")),
            **configs.random_sampler(rcnn.child("sampler"), "box", with_objects=True),
            **configs.detections(test.child("rcnn")),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, proposals, RoIs and predictions for them, assignments, and the items of targets."""
    outputs, targets = results.outputs, results.targets
    found = (
        adapter.maps("fpn", outputs.features)
        | adapter.maps("rpn_cls", outputs.rpn_logits)
        | adapter.maps("rpn_bbox", outputs.rpn_deltas)
    )
    kept = [np.flatnonzero(valid) for valid in outputs.proposals.valid]
    for i, rows in enumerate(kept):
        found[f"proposals_{i}"] = outputs.proposals.boxes[i, rows]
        found[f"proposal_scores_{i}"] = outputs.proposals.scores[i, rows]
    return {
        **adapter.with_training(found, case),
        "rois_0": _rois(outputs.proposals.boxes, kept),
        "roi_cls_score_0": _rows(outputs.cls_logits, kept),
        "roi_bbox_pred_0": _rows(outputs.box_deltas, kept),
        **_rpn_targets(targets["rpn"]),
        **_box_targets(case, targets["box"], kept),
    }


def _rpn_targets(rpn) -> dict[str, np.ndarray]:
    """The RPN has one class, 0; its background is 1."""
    items = adapter.delta_items(rpn, 0, 1)
    name = "train_targets.rpn_head.get_targets.0"
    # Each image counts as at least one positive and one negative.
    counts = [np.maximum((rpn.status == kind).sum(1), 1).sum() for kind in (0, 1)]
    return {
        **adapter.assignment("train_assign.rpn_head.assigner", rpn, 0),
        **adapter.split_items(name, items, rpn.level[0]),
        f"{name}.{len(items)}": np.float32(sum(counts)),
    }


def _box_targets(case, box, kept) -> dict[str, np.ndarray]:
    """The reference samples all boxes and lists positives first, objects before proposals."""
    count = box.boxes.shape[1] - case.batch().boxes.shape[1]  # of proposals; objects follow
    labels = adapter.object_labels(case, box)
    rows, slots = [], []
    for i, index in enumerate(box.values["index"]):
        order = np.lexsort((index, index < count, -box.status[i]))
        rows.append(order[box.status[i, order] >= 0])
        slot = np.full(count, -1)  # of each proposal; the last and empty one if not sampled
        of_proposals = rows[i][index[rows[i]] < count]
        slot[index[of_proposals]] = of_proposals
        slots.append(slot[kept[i]])
    found = adapter.assignment("train_assign.roi_head.bbox_assigner", box, labels, slots)
    found["train_rois_0"] = _rois(box.boxes, rows)
    for item, values in enumerate(adapter.delta_items(box, labels, case.info["num_classes"])):
        found[f"train_targets.roi_head.bbox_head.get_targets.0.{item}"] = _rows(values, rows)
    return found


def _rows(values: np.ndarray, rows) -> np.ndarray:
    return np.concatenate([of_image[kept] for of_image, kept in zip(values, rows, strict=True)])


def _rois(boxes: np.ndarray, rows) -> np.ndarray:
    """[R, 5]: image number and box."""
    image = np.concatenate([np.full(len(kept), i, np.float32) for i, kept in enumerate(rows)])
    return np.concatenate([image[:, None], _rows(boxes, rows)], axis=1)


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "FasterRCNN",
        "model_cfg.neck.type": "FPN",
        "model_cfg.rpn_head.type": "RPNHead",
        "model_cfg.roi_head.type": "StandardRoIHead",
        "model_cfg.roi_head.bbox_head.type": "Shared2FCBBoxHead",
        "model_cfg.roi_head.bbox_head.loss_cls.type": "CrossEntropyLoss",
        "model_cfg.roi_head.bbox_head.loss_bbox.type": "L1Loss",
        "train_cfg.rcnn.sampler.type": "RandomSampler",
    },
    detector="faster_rcnn",
    fields=fields,
    table=mmdet_faster_rcnn.table,
    arrays=arrays,
    losses={
        "loss_rpn_cls": "loss/rpn_cls",
        "loss_rpn_bbox": "loss/rpn_box",
        "loss_cls": "loss/cls",
        "acc": "accuracy_percent",
        "loss_bbox": "loss/box",
    },
    not_compared=(
        r"train_assign\..*\.max_overlaps",  # `Targets` keeps what was derived from them
        # They include objects; `roi_...` covers the proposals, losses and gradients cover both.
        r"train_roi_(cls_score|bbox_pred)_0",
    ),
    gradient_stops=("backbones/resnet.py",),
)

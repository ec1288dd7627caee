"""mmdet's Faster R-CNN: RPNHead and Shared2FCBBoxHead over an FPN."""

import numpy as np

from benchmarks import reference_configs
from benchmarks.parity_adapters import adapter
from converters.tables import mmdet_faster_rcnn
from detlab import errors


def fields(info: dict) -> dict:
    """Fields of `detectors.faster_rcnn.FasterRCNN`."""
    model, train, test = reference_configs.readers(info)
    model.expect("type", "FasterRCNN")
    roi = model.child("roi_head")
    roi.expect("type", "StandardRoIHead")
    rpn_fields = _rpn(model.child("rpn_head"))
    found = {
        "num_classes": info["num_classes"],
        **reference_configs.preprocessor(model.child("data_preprocessor")),
        **reference_configs.resnet(model.child("backbone")),
        **reference_configs.fpn(model.child("neck"), 0, False, len(rpn_fields["strides"])),
        **rpn_fields,
        **_roi_extractor(roi.child("bbox_roi_extractor")),
        **_box_head(roi.child("bbox_head"), info["num_classes"]),
        **_rpn_training(train.child("rpn")),
        **_proposals(train.child("rpn_proposal"), "train_proposals"),
        **_box_training(train.child("rcnn")),
        **_box_test(test.child("rcnn")),
    }
    in_prediction = _proposals(test.child("rpn"), "proposals")
    if in_prediction["proposal_nms_iou"] != found["proposal_nms_iou"]:
        raise errors.UserError(f"{test.path}.rpn has another NMS than training; detlab has one.")
    found |= in_prediction
    for reader in (model, train, test):
        reader.finish()
    return found


def _rpn(head: reference_configs.Reader) -> dict:
    head.expect("type", "RPNHead")
    head.skip("in_channels")  # follows from the neck
    anchors = head.child("anchor_generator")
    anchors.expect("type", "AnchorGenerator")
    (scale,) = anchors.take("scales")
    coder = reference_configs.delta_coder(head.child("bbox_coder"))
    if tuple(coder["delta_stds"]) != (1.0, 1.0, 1.0, 1.0):
        raise errors.UserError(f"{head.path}.bbox_coder has stds; detlab's proposals have none.")
    cls = head.child("loss_cls")
    cls.expect("type", "CrossEntropyLoss")
    cls.expect("use_sigmoid", True)
    cls.expect("loss_weight", 1.0)
    _l1(head.child("loss_bbox"))
    return {
        "rpn_width": head.take("feat_channels", 256),
        "strides": tuple(anchors.take("strides")),
        "anchor_scale": float(scale),
        "aspect_ratios": tuple(anchors.take("ratios")),
    }


def _l1(config: reference_configs.Reader) -> None:
    config.expect("type", "L1Loss")
    config.expect("loss_weight", 1.0)


def _roi_extractor(config: reference_configs.Reader) -> dict:
    config.expect("type", "SingleRoIExtractor")
    config.expect("featmap_strides", [4, 8, 16, 32])
    config.skip("out_channels")  # follows from the neck
    layer = config.child("roi_layer")
    layer.expect("type", "RoIAlign")
    ratio = layer.take("sampling_ratio", 0)
    return {
        "roi_size": layer.take("output_size"),
        "roi_scale": float(config.take("finest_scale", 56)),
        "sampling_ratio": ratio,
        "predict_sampling_ratio": ratio,
    }


def _box_head(config: reference_configs.Reader, num_classes: int) -> dict:
    config.expect("type", "Shared2FCBBoxHead")
    config.expect("num_classes", num_classes)
    config.expect("roi_feat_size", 7)
    config.expect("reg_class_agnostic", False, default=False)
    config.skip("in_channels")
    cls = config.child("loss_cls")
    cls.expect("type", "CrossEntropyLoss")
    cls.expect("use_sigmoid", False, default=False)
    cls.expect("loss_weight", 1.0)
    _l1(config.child("loss_bbox"))
    return {
        "box_width": config.take("fc_out_channels"),
        **reference_configs.delta_coder(config.child("bbox_coder")),
    }


def _sampler(config: reference_configs.Reader, with_objects: bool, prefix: str) -> dict:
    config.expect("type", "RandomSampler")
    config.expect("neg_pos_ub", -1, default=-1)
    config.expect("add_gt_as_proposals", with_objects, default=True)
    return {
        f"{prefix}_samples": config.take("num"),
        f"{prefix}_positive_fraction": config.take("pos_fraction"),
    }


def _rpn_training(config: reference_configs.Reader) -> dict:
    config.expect("allowed_border", -1)
    config.expect("pos_weight", -1)
    config.skip("debug")
    assigner = config.child("assigner")
    assigner.expect("type", "MaxIoUAssigner")
    assigner.expect("match_low_quality", True)
    assigner.expect("ignore_iof_thr", -1)
    return {
        "rpn_positive_iou": assigner.take("pos_iou_thr"),
        "rpn_negative_iou": assigner.take("neg_iou_thr"),
        "rpn_min_positive_iou": assigner.take("min_pos_iou"),
        **_sampler(config.child("sampler"), False, "rpn"),
    }


def _box_training(config: reference_configs.Reader) -> dict:
    config.expect("pos_weight", -1)
    config.skip("debug")
    assigner = config.child("assigner")
    assigner.expect("type", "MaxIoUAssigner")
    assigner.expect("match_low_quality", False)
    assigner.expect("ignore_iof_thr", -1)
    iou = assigner.take("pos_iou_thr")
    assigner.expect("neg_iou_thr", iou)
    assigner.expect("min_pos_iou", iou)
    return {"positive_iou": iou, **_sampler(config.child("sampler"), True, "box")}


def _proposals(config: reference_configs.Reader, name: str) -> dict:
    config.expect("min_bbox_size", 0)
    nms = config.child("nms")
    nms.expect("type", "nms")
    return {
        f"{name}_per_level": config.take("nms_pre"),
        name: config.take("max_per_img"),
        "proposal_nms_iou": nms.take("iou_threshold"),
    }


def _box_test(config: reference_configs.Reader) -> dict:
    nms = config.child("nms")
    nms.expect("type", "nms")
    return {
        "score_threshold": config.take("score_thr"),
        "nms_iou": nms.take("iou_threshold"),
        "max_detections": config.take("max_per_img"),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, proposals, RoIs and what is said of them, assignments, and the items of targets."""
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
    found["rois_0"] = _rois(outputs.proposals.boxes, kept)
    found["roi_cls_score_0"] = _rows(outputs.cls_logits, kept)
    found["roi_bbox_pred_0"] = _rows(outputs.box_deltas, kept)
    found |= {f"train_{name}": values for name, values in found.items() if "roi" not in name}
    found |= _rpn_targets(targets["rpn"])
    found |= _box_targets(case, targets["box"], kept)
    return found


def _rpn_targets(rpn) -> dict[str, np.ndarray]:
    positive, sampled = rpn.status == 1, rpn.status >= 0
    found = {}
    for i, gt_inds in enumerate(adapter.assigned(rpn)):
        name = f"train_assign.rpn_head.assigner.{i}"
        found[f"{name}.gt_inds"] = gt_inds
        # The RPN has one class, and so are its objects labelled.
        found[f"{name}.labels"] = np.where(positive[i], 0, -1)
    four = np.broadcast_to(positive[..., None], (*positive.shape, 4))
    items = (
        np.where(positive, 0, 1),
        sampled.astype(np.float32),
        rpn.values["deltas"],
        four.astype(np.float32),
    )
    name = "train_targets.rpn_head.get_targets.0"
    for item, values in enumerate(items):
        found |= adapter.split_levels(f"{name}.{item}", values, rpn.level[0])
    # Of each image at least one positive and one negative are reckoned.
    counts = [np.maximum((rpn.status == kind).sum(1), 1).sum() for kind in (0, 1)]
    found[f"{name}.4"] = np.float32(sum(counts))
    return found


def _box_targets(case, box, kept) -> dict[str, np.ndarray]:
    """The reference, which samples all, has positives first, and objects before proposals."""
    batch = case.batch()
    count = box.boxes.shape[1] - batch.boxes.shape[1]  # of proposals; the objects come after them
    labels = np.take_along_axis(batch.labels, box.matched, axis=1)
    found, rows = {}, []
    for i, (gt_inds, index) in enumerate(zip(adapter.assigned(box), box.values["index"])):
        order = np.lexsort((index, index < count, -box.status[i]))
        rows.append(order[box.status[i, order] >= 0])
        slot = np.full(count, -1)  # of each proposal; the last, which is empty, where not sampled
        of_proposals = rows[i][index[rows[i]] < count]
        slot[index[of_proposals]] = of_proposals
        slot = slot[kept[i]]
        name = f"train_assign.roi_head.bbox_assigner.{i}"
        found[f"{name}.gt_inds"] = gt_inds[slot]
        found[f"{name}.labels"] = np.where(box.status[i] == 1, labels[i], -1)[slot]
    positive = _rows(box.status, rows) == 1
    four = np.broadcast_to(positive[:, None], (len(positive), 4))
    found["train_rois_0"] = _rois(box.boxes, rows)
    name = "train_targets.roi_head.bbox_head.get_targets.0"
    found[f"{name}.0"] = np.where(positive, _rows(labels, rows), case.info["num_classes"])
    found[f"{name}.1"] = np.ones(len(positive), np.float32)
    found[f"{name}.2"] = _rows(box.values["deltas"], rows)
    found[f"{name}.3"] = four.astype(np.float32)
    return found


def _rows(values: np.ndarray, rows) -> np.ndarray:
    return np.concatenate([of_image[kept] for of_image, kept in zip(values, rows)])


def _rois(boxes: np.ndarray, rows) -> np.ndarray:
    """[R, 5]: the image, and the box."""
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
        r"train_assign\..*\.max_overlaps",  # `Targets` keeps what follows from them
        # Of objects besides proposals, whose rows are `roi_...`; losses and gradients have both.
        r"train_roi_(cls_score|bbox_pred)_0",
    ),
)

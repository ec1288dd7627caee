"""mmdet's Faster R-CNN: RPNHead and Shared2FCBBoxHead over an FPN."""

from collections.abc import Callable

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_faster_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.faster_rcnn.FasterRCNN`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rcnn = model.child("roi_head"), configs.training(train.child("rcnn"))
        roi.expect("type", "StandardRoIHead")
        head = configs.head(roi, "Shared2FCBBoxHead", info)
        configs.loss(head.child("loss_bbox"), "L1Loss")
        return {
            **all_but_box_head(info, model, roi, train, test),
            **box_head(head),
            **box_training(rcnn),
        }


def all_but_box_head(
    info: dict,
    model: configs.Reader,
    roi: configs.Reader,
    train: configs.Reader,
    test: configs.Reader,
    neck: configs.Reader | None = None,
    first: dict | None = None,
) -> dict:
    """Fields of all parts that Faster R-CNN and its relatives share.

    Args:
      info: of the case.
      model, roi, train, test: readers; `roi` of the `roi_head`.
      neck: that of the FPN; by default the model's `neck`.
      first: fields of the RPN and its training; by default those of an RPNHead.
    """
    if first is None:
        training = configs.rpn_training(train.child("rpn"))
        first = {**configs.rpn(model.child("rpn_head")), **training}
    neck = model.child("neck") if neck is None else neck
    return {
        **configs.inputs(info, model),
        **configs.resnet(model.child("backbone")),
        **configs.fpn(neck, 0, False, len(first["strides"])),
        **first,
        **configs.roi_extractor(roi.child("bbox_roi_extractor")),
        **configs.proposals(train, test),
        **configs.detections(test.child("rcnn")),
    }


def box_head(head: configs.Reader, class_agnostic: bool = False) -> dict:
    """Shared2FCBBoxHead without its box loss."""
    head.expect("roi_feat_size", 7)
    head.expect("reg_class_agnostic", class_agnostic, default=False)
    configs.cross_entropy(head.child("loss_cls"), sigmoid=False)
    return {
        "box_width": head.take("fc_out_channels"),
        **configs.delta_coder(head.child("bbox_coder")),
    }


def box_training(rcnn: configs.Reader) -> dict:
    """How a box head's RoIs are assigned and sampled."""
    return {
        "positive_iou": configs.roi_assigner(rcnn.child("assigner")),
        **configs.random_sampler(rcnn.child("sampler"), "box", with_objects=True),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, proposals, RoIs and predictions for them, assignments, and the items of targets."""
    outputs = results.outputs
    found, kept = first_stage(case, results)
    of_box, _ = box_targets(case, results.targets["box"], kept, 0, "bbox_assigner", "bbox_head")
    return {
        **found,
        **box_outputs(0, outputs.proposals.boxes, (outputs.cls_logits, outputs.box_deltas), kept),
        **of_box,
    }


def first_stage(case, results: adapter.Results) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """(maps, proposals, assignments and targets of an RPN; each image's rows of real proposals)."""
    outputs = results.outputs
    found = (
        adapter.maps("fpn", outputs.features)
        | adapter.maps("rpn_cls", outputs.rpn_logits)
        | adapter.maps("rpn_bbox", outputs.rpn_deltas)
    )
    kept = [np.flatnonzero(valid) for valid in outputs.proposals.valid]
    for i, rows in enumerate(kept):
        found[f"proposals_{i}"] = outputs.proposals.boxes[i, rows]
        found[f"proposal_scores_{i}"] = outputs.proposals.scores[i, rows]
    return adapter.with_training(found, case) | rpn_targets(case, results.targets["rpn"]), kept


def box_outputs(stage: int, rois: np.ndarray, outputs, kept) -> dict[str, np.ndarray]:
    """RoIs and what a box head predicts for them: logits, and one array or several for boxes."""
    logits, *boxes = outputs
    found = {
        f"rois_{stage}": _rois(rois, kept),
        f"roi_cls_score_{stage}": _rows(logits, kept),
    }
    for part, values in enumerate(boxes):
        name = f"roi_bbox_pred_{stage}_{part}".removesuffix("" if boxes[1:] else f"_{part}")
        found[name] = _rows(values.reshape(*values.shape[:2], -1), kept)
    return found


def delta_items(box, labels: np.ndarray, background: int) -> dict[str, np.ndarray]:
    """The items of a box head's `get_targets` by their names, [B, R, ...] each."""
    items = adapter.delta_items(box, labels, background)
    return {str(item): values for item, values in enumerate(items)}


def rpn_targets(case, rpn) -> dict[str, np.ndarray]:
    """The RPN has one class, 0; its background is 1."""
    items = adapter.delta_items(rpn, 0, 1)
    name = "train_targets.rpn_head.get_targets.0"
    # Each image counts as at least one positive and one negative.
    counts = [np.maximum((rpn.status == kind).sum(1), 1).sum() for kind in (0, 1)]
    # The reference assigns only the anchors that it trains on.
    height, width = case.batch().images.shape[1:3]
    inside = ((rpn.boxes[0, :, :2] >= 0) & (rpn.boxes[0, :, 2:] < (width, height))).all(-1)
    crossing = case.info["train_cfg"]["rpn"].get("allowed_border", -1) < 0
    assigned = [slice(None) if crossing else inside] * len(rpn.status)
    return {
        **adapter.assignment("train_assign.rpn_head.assigner", rpn, 0, assigned),
        **adapter.split_items(name, items, rpn.level[0]),
        f"{name}.{len(items)}": np.float32(sum(counts)),
    }


def box_targets(
    case,
    box,
    kept,
    stage: int,
    assigner: str,
    head: str,
    items: Callable = delta_items,
    ranked: bool = False,
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The assignment and targets of a box head, and `kept` of the next stage.

    The reference samples all boxes and lists positives first, objects before proposals.

    Args:
      box: the targets.
      kept: for each image, the numbers of the real proposals, in the reference's order.
      stage: counted from 0.
      assigner, head: their names in the reference.
      items: see `delta_items`.
      ranked: whether negatives are in the order in which they are drawn, here and there.
    """
    count = box.boxes.shape[1] - case.batch().boxes.shape[1]  # of proposals; objects follow
    labels = adapter.object_labels(case, box)
    rows, slots, following = [], [], []
    for i, index in enumerate(box.values["index"]):
        place = np.arange(box.boxes.shape[1])  # of each candidate in the reference
        place[kept[i]] = np.arange(len(kept[i]))
        keys = place[index], index < count
        if ranked:
            keys = tuple(np.where(box.status[i] == 0, np.arange(len(index)), key) for key in keys)
        order = np.lexsort((*keys, -box.status[i]))
        rows.append(order[box.status[i, order] >= 0])
        slot = np.full(count, -1)  # of each proposal; the last and empty one if not sampled
        of_proposals = rows[i][index[rows[i]] < count]
        slot[index[of_proposals]] = of_proposals
        slots.append(slot[kept[i]])
        # The next stage counts the sampled proposals in the order of the slots.
        following.append(np.argsort(np.argsort(of_proposals)))
    found = adapter.assignment(f"train_assign.roi_head.{assigner}", box, labels, slots)
    found[f"train_rois_{stage}"] = _rois(box.boxes, rows)
    for item, values in items(box, labels, case.info["num_classes"]).items():
        found[f"train_targets.roi_head.{head}.get_targets.0.{item}"] = _rows(values, rows)
    return found, following


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
        adapter.OVERLAPS,
        # They include objects; `roi_...` covers the proposals, losses and gradients cover both.
        r"train_roi_(cls_score|bbox_pred)_0",
    ),
    gradient_stops=("backbones/resnet.py",),
)

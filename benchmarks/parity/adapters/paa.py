"""mmdet's PAA: PAAHead, whose assignment has two steps, on the network of ATSS."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, atss
from detlab import errors
from detlab.converters.tables import mmdet_paa


def fields(info: dict) -> dict:
    """Fields of `detectors.paa.PAA`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "PAA")
        head = configs.head(model, "PAAHead", info)
        head.expect("covariance_type", "diag")
        iou_weight = configs.cross_entropy(head.child("loss_centerness"), sigmoid=True, weight=None)
        assigned = configs.max_iou(configs.training(train).child("assigner"))
        if assigned["positive_iou"] != assigned["negative_iou"]:
            raise errors.UserError(f"{train.path}.assigner has {assigned}; detlab has one IoU.")
        return {
            **atss.network(info, model, head),
            "topk": head.take("topk", 9),
            "candidate_iou": assigned["positive_iou"],
            "iou_weight": iou_weight,
            "voting": head.take("score_voting", True),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Maps, the first assignment, the items of `get_targets`, and those after re-assignment."""
    first, final = results.targets["candidates"], results.targets["main"]
    labels, background = adapter.object_labels(case, first), case.info["num_classes"]
    found = atss.maps(case, results.outputs, "iou_pred")
    found |= adapter.assignment("train_assign.bbox_head.assigner", first, labels)
    targets, again = "train_targets.bbox_head.get_targets.0", "train_targets.bbox_head.paa_reassign"

    items = adapter.delta_items(first, labels, background, first.values["gt_boxes"])
    new_labels, new_weights, _, new_box_weights = adapter.delta_items(
        final, labels, background, final.values["gt_boxes"]
    )
    for i, positive in enumerate(first.status == 1):
        matched = first.matched[i][positive]
        for item, values in enumerate([*(x[i] for x in items), np.flatnonzero(positive), matched]):
            found[f"{targets}.{item}_{i}"] = values
        kept = (final.status[i] == 1).sum()
        for item, values in enumerate([new_labels[i], new_weights[i], new_box_weights[i], kept]):
            found[f"{again}.{i}.{item}"] = values
    return found


ADAPTER = atss.ADAPTER._replace(
    parts={"model_cfg.type": "PAA", "model_cfg.bbox_head.type": "PAAHead"},
    detector="paa",
    fields=fields,
    table=mmdet_paa.table,
    arrays=arrays,
    losses={"loss_cls": "loss/cls", "loss_bbox": "loss/box", "loss_iou": "loss/iou"},
)

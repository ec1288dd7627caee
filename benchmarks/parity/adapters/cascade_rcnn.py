"""mmdet's Cascade R-CNN: a CascadeRoIHead of Shared2FCBBoxHeads on Faster R-CNN's RPN and FPN."""

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, faster_rcnn
from detlab.converters.tables import mmdet_cascade_rcnn

STAGES = 3


def fields(info: dict) -> dict:
    """Fields of `detectors.cascade_rcnn.CascadeRCNN`."""
    with configs.readers(info) as (model, train, test):
        roi = model.child("roi_head")
        shared, heads = [], roi.children("bbox_head", STAGES)
        for head in heads:
            configs.head_type(head, "Shared2FCBBoxHead", info)
            box = head.child("loss_bbox")
            configs.loss(box, "SmoothL1Loss")
            beta = {"box_beta": box.take("beta", 1.0)}
            shared.append({**beta, **faster_rcnn.box_head(head, class_agnostic=True)})
        return {
            **all_but_box_heads(info, model, roi, train, test),
            "stage_stds": tuple(fields.pop("delta_stds") for fields in shared),
            **configs.equal(shared, roi),
        }


def all_but_box_heads(
    info: dict,
    model: configs.Reader,
    roi: configs.Reader,
    train: configs.Reader,
    test: configs.Reader,
) -> dict:
    """Fields of all parts that forms of Cascade R-CNN with other box heads share."""
    model.expect("type", "CascadeRCNN")
    roi.expect("type", "CascadeRoIHead")
    roi.expect("num_stages", STAGES)
    ious, samplers = [], []
    for rcnn in train.children("rcnn", STAGES):
        ious.append(configs.roi_assigner(configs.training(rcnn).child("assigner")))
        samplers.append(configs.random_sampler(rcnn.child("sampler"), "box", with_objects=True))
    return {
        **faster_rcnn.all_but_box_head(info, model, roi, train, test),
        "stage_ious": tuple(ious),
        "stage_weights": tuple(float(weight) for weight in roi.take("stage_loss_weights")),
        **configs.equal(samplers, train),
    }


def arrays(
    case, results: adapter.Results, items: Callable = faster_rcnn.delta_items
) -> dict[str, np.ndarray]:
    """As in Faster R-CNN, for every stage; `items` of its targets."""
    outputs = results.outputs
    found, kept = faster_rcnn.first_stage(case, results)
    of_stage, several = kept, len(outputs.stages) > 1
    for stage, predicted in enumerate(outputs.stages):
        found |= faster_rcnn.box_outputs(stage, outputs.rois[stage], predicted, kept)
        targets = results.targets[f"box{stage}"]
        names = [f"{name}.{stage}" if several else name for name in ("bbox_assigner", "bbox_head")]
        of_box, of_stage = faster_rcnn.box_targets(case, targets, of_stage, stage, *names, items)
        found |= of_box
    return found


def losses(of_stage: Mapping[str, str]) -> dict[str, str]:
    """Loss of the case -> metric; `of_stage` are those of a stage, without its number."""
    return {
        "loss_rpn_cls": "loss/rpn_cls",
        "loss_rpn_bbox": "loss/rpn_box",
        **{
            f"s{stage}.{theirs}": f"{ours}{stage}"
            for stage in range(STAGES)
            for theirs, ours in of_stage.items()
        },
    }


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "CascadeRCNN",
        "model_cfg.roi_head.type": "CascadeRoIHead",
        "model_cfg.roi_head.bbox_head.0.type": "Shared2FCBBoxHead",
    },
    detector="cascade_rcnn",
    fields=fields,
    table=mmdet_cascade_rcnn.table,
    arrays=arrays,
    losses=losses(
        {"loss_cls": "loss/cls", "acc": "accuracy_percent", "loss_bbox": "loss/box"},
    ),
    not_compared=(adapter.OVERLAPS, r"train_roi_(cls_score|bbox_pred)_\d"),
    gradient_stops=("backbones/resnet.py",),
)

"""mmdet's Faster R-CNN with a SABLHead."""

from collections.abc import Sequence

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, cascade_rcnn, faster_rcnn
from detlab import errors
from detlab.converters.tables import mmdet_sabl_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.sabl_rcnn.SABLRCNN` with one stage."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "FasterRCNN")
        roi, rcnn = model.child("roi_head"), configs.training(train.child("rcnn"))
        roi.expect("type", "StandardRoIHead")
        training = faster_rcnn.box_training(rcnn)
        return {
            **faster_rcnn.all_but_box_head(info, model, roi, train, test),
            "stage_ious": (training.pop("positive_iou"),),
            **training,
            **box_heads([roi.child("bbox_head")], roi, info),
        }


def box_heads(heads: Sequence[configs.Reader], roi: configs.Reader, info: dict) -> dict:
    """The SABLHead of each stage."""
    found = [box_head(head, info) for head in heads]
    scales = tuple(fields.pop("bucket_scale") for fields in found)
    return {"stage_scales": scales, **configs.equal(found, roi)}


def box_head(head: configs.Reader, info: dict) -> dict:
    """SABLHead with two convolutions before the attention and one after it."""
    configs.head_type(head, "SABLHead", info)
    head.skip("cls_in_channels", "reg_in_channels")  # those of the neck
    head.skip("reg_offset_out_channels", "reg_cls_out_channels")  # of no layers
    only = {
        "roi_feat_size": 7,
        "reg_feat_up_ratio": 2,
        "reg_pre_kernel": 3,
        "reg_pre_num": 2,
        "reg_post_kernel": 3,
        "reg_post_num": 1,
        "num_cls_fcs": 1,
        "num_reg_fcs": 0,
        "reg_class_agnostic": True,
        "norm_cfg": None,
    }
    for key, value in only.items():
        head.expect(key, value)
    coder = head.child("bbox_coder")
    buckets = configs.bucketing_coder(coder)
    if buckets.pop("num_buckets") != 14:
        raise errors.UserError(f"{coder.path}.num_buckets must be 14, twice roi_feat_size.")
    configs.cross_entropy(head.child("loss_cls"), sigmoid=False)
    configs.cross_entropy(head.child("loss_bbox_cls"), sigmoid=True)
    offset = head.child("loss_bbox_reg")
    configs.loss(offset, "SmoothL1Loss")
    return {
        "box_width": head.take("cls_out_channels"),
        "box_beta": offset.take("beta", 1.0),
        **buckets,
    }


def bucket_items(targets, labels: np.ndarray, background: int) -> dict[str, np.ndarray]:
    """Classes and their weights; then labels and offsets of buckets, and the weights of both."""
    values = {name: x.reshape(*x.shape[:2], -1) for name, x in targets.values.items()}
    classes, weights, *_ = adapter.delta_items(targets, labels, background, values["labels"])
    names = {"labels": "2_0", "offsets": "2_1", "label_weights": "3_0", "offset_weights": "3_1"}
    return {"0": classes, "1": weights, **{item: values[name] for name, item in names.items()}}


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """As in Cascade R-CNN, with the outputs and targets of buckets."""
    return cascade_rcnn.arrays(case, results, bucket_items)


# Loss of a stage -> metric, without its number.
LOSSES = {
    "loss_cls": "loss/cls",
    "acc": "accuracy_percent",
    "loss_bbox_cls": "loss/bucket",
    "loss_bbox_reg": "loss/offset",
}
ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "FasterRCNN",
        "model_cfg.roi_head.type": "StandardRoIHead",
        "model_cfg.roi_head.bbox_head.type": "SABLHead",
    },
    detector="sabl_rcnn",
    fields=fields,
    table=mmdet_sabl_rcnn.table,
    arrays=arrays,
    losses={
        "loss_rpn_cls": "loss/rpn_cls",
        "loss_rpn_bbox": "loss/rpn_box",
        **{theirs: f"{ours}0" for theirs, ours in LOSSES.items()},
    },
    not_compared=(adapter.OVERLAPS, r"train_roi_(cls_score|bbox_pred)_\d(_\d)?"),
    gradient_stops=("backbones/resnet.py",),
)

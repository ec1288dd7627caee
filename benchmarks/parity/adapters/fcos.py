"""mmdet's FCOS: FCOSHead over an FPN, with and without its later improvements."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab import errors
from detlab.converters.tables import mmdet_fcos

# mmdet's largest distance at the last level; detlab's is infinite.
_INFINITE = 1e8
_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, _INFINITE))


def fields(info: dict) -> dict:
    """Fields of `detectors.fcos.FCOS`."""
    with configs.readers(info) as (model, _, test):
        model.expect("type", "FCOS")
        head = configs.head(model, "FCOSHead", info)
        strides = tuple(head.take("strides"))
        head.expect("dcn_on_last_conv", False, default=False)
        radius = head.take("center_sample_radius", 1.5)
        box_losses = {"IoULoss": "iou", "GIoULoss": "giou"}
        box_loss = head.child("loss_bbox")
        kind = box_loss.take("type")
        if kind not in box_losses:
            raise errors.UserError(
                f"{box_loss.path}.type is {kind!r}; detlab has {list(box_losses)}."
            )
        box_loss.expect("loss_weight", 1.0)
        configs.cross_entropy(head.child("loss_centerness"), sigmoid=True)
        neck = model.child("neck")
        neck.expect("relu_before_extra_convs", True, default=False)
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(neck, 1, "on_output", len(strides)),
            **configs.tower(head),
            **configs.group_norm(head.child("norm_cfg")),
            # "auto": a bias only without a norm
            "conv_bias": head.take("conv_bias", "auto") is True,
            "centerness_on_box": head.take("centerness_on_reg", False),
            "strides": strides,
            "distances_in_strides": head.take("norm_on_bbox", False),
            "level_limits": limits(head),
            "center_radius": radius if head.take("center_sampling", False) else 0.0,
            "box_loss": box_losses[kind],
            **configs.focal_loss(head.child("loss_cls")),
            **configs.dense_test(test),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, and the items of `get_targets`."""
    outputs, targets = results.outputs, results.targets["main"]
    distances = adapter.maps("bbox_pred", outputs.box_distances)
    found = adapter.maps("cls_score", outputs.cls_logits)
    found |= adapter.maps("centerness", outputs.centerness)
    found = adapter.with_training(found | distances, case) | adapter.maps("fpn", outputs.features)
    # mmdet's head converts strides to pixels in prediction only.
    head = case.info["model_cfg"]["bbox_head"]
    unit = head["strides"] if head.get("norm_on_bbox") else [1] * len(distances)
    found |= {name: x * stride for (name, x), stride in zip(distances.items(), unit, strict=True)}

    labels, background = adapter.object_labels(case, targets), case.info["num_classes"]
    items = adapter.delta_items(targets, labels, background, targets.values["distances"])
    name = "train_targets.bbox_head.get_targets.0"
    levels = adapter.split_items(name, items[::2], targets.level[0])  # FCOS has no weights
    # mmdet concatenates the points of a level over all images.
    return found | {name: x.reshape(-1, *x.shape[2:]) for name, x in levels.items()}


def readable(case) -> dict[str, np.ndarray]:
    """Masks distances to positive points; other points hold some object's, not zeros."""
    name, masks = "train_targets.bbox_head.get_targets.0", {}
    for level in range(len(case.info["model_cfg"]["bbox_head"]["strides"])):
        labels = case.arrays[f"{name}.0_{level}"]
        masks[f"{name}.1_{level}"] = (labels < case.info["num_classes"])[:, None]
    return masks


def limits(head: configs.Reader) -> tuple[float, ...]:
    """The limits between levels, from `regress_ranges`, which must leave no gap."""
    low, high = zip(*head.take("regress_ranges", _RANGES), strict=True)
    if low[0] > 0 or low[1:] != high[:-1] or high[-1] < _INFINITE:
        raise errors.UserError(f"{head.path}.regress_ranges do not cover all distances.")
    return tuple(map(float, low[1:]))


ADAPTER = adapter.Adapter(
    parts={"model_cfg.type": "FCOS", "model_cfg.bbox_head.type": "FCOSHead"},
    detector="fcos",
    fields=fields,
    table=mmdet_fcos.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_bbox": "loss/box",
        "loss_centerness": "loss/centerness",
    },
    readable=readable,
    gradient_stops=("backbones/resnet.py",),
)

"""FCOS-50 in its improved form on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/fcos_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: the model is that of
`fcos_coco:improved`, on torchvision's backbone, and the schedule that of `retinanet_voc`.
`:scratch` trains from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("fcos")
    config.model = ConfigDict(
        dict(
            num_classes=20,
            depth=50,
            style="pytorch",
            backbone_norm="stored",
            frozen_stages=1,
            center_radius=1.5,
            distances_in_strides=True,
            centerness_on_box=True,
            box_loss="giou",
            conv_bias=True,
            nms_iou=0.6,
            pixel_mean=(123.675, 116.28, 103.53),
            pixel_std=(58.395, 57.12, 57.375),
            dtype="float32",
        )
    )
    common.voc_files(config)
    config.data.update(
        canvases=((608, 1024), (1024, 608)),
        size_limits=(1000, 600),
        max_boxes=64,
    )
    common.schedule_1x(config)
    config.optim.update(
        milestones=(9, 11), no_decay=(r"params/.*(?<!/norm)/bias",), warmup_factor=1 / 3
    )
    config.eval.update(best_by="mAP07")
    common.from_imagenet(config, "experiments/fcos_voc.py")
    config.init_skip = ("params/(neck|head|box_scales)/.*",)
    if variant == "scratch":
        common.from_scratch(config)
    return config

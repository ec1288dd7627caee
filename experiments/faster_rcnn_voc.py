"""Faster R-CNN with ResNet-50 and FPN on PASCAL VOC 07+12, evaluated on the test split of 07.

    python -m detlab.train --config experiments/faster_rcnn_voc.py --config.data.root=VOCdevkit

The schedule is mmdetection's for VOC: 12 epochs, divided by 10 after 9.  `:scratch` trains from
random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("faster_rcnn")
    config.model = ConfigDict(
        dict(
            num_classes=20,
            depth=50,
            backbone_norm="stored",
            frozen_stages=1,
            predict_sampling_ratio=0,
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
    config.optim.update(lr=0.02, milestones=(9,))
    config.eval.update(best_by="mAP07")
    common.from_imagenet(config, "experiments/faster_rcnn_voc.py")
    config.init_skip = ("params/(neck|rpn|box_head)/.*",)
    if variant == "scratch":
        common.from_scratch(config)
    return config

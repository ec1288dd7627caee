"""Faster R-CNN-50 with FPN on COCO 2017 (mmdetection's `faster-rcnn_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/faster_rcnn_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference publishes AP 37.4.  `:scratch`
trains from random weights.  Prediction samples RoIs as the reference does, so that published
weights give their scores.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("faster_rcnn")
    config.model = ConfigDict(
        dict(
            num_classes=80,
            depth=50,
            backbone_norm="stored",
            frozen_stages=1,
            predict_sampling_ratio=0,
            dtype="float32",
        )
    )
    common.coco_files(config)
    config.data.update(canvases=((800, 1344), (1344, 800)), size_limits=(1333, 800))
    common.schedule_1x(config)
    config.optim.lr = 0.02
    common.from_imagenet(config, "experiments/faster_rcnn_coco.py")
    config.init_skip = ("params/(neck|rpn|box_head)/.*",)
    if variant == "scratch":
        common.from_scratch(config)
    return config

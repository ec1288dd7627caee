"""Faster R-CNN with ResNet-50 and FPN on PASCAL VOC 07+12, evaluated on the test split of 07.

    python -m detlab.train --config experiments/faster_rcnn_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The schedule is mmdetection's for VOC, which repeats the data
three times in 4 epochs: here 12 epochs, lr 0.01 for 16 images without warm-up, a tenth after 9.
`:scratch` trains from random weights.  Prediction samples RoIs as the reference does.
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
    config.optim.update(lr=0.01, milestones=(9,), warmup_steps=0)
    config.eval.update(best_by="mAP07")
    common.from_imagenet(config, "experiments/faster_rcnn_voc.py")
    config.init_skip = ("params/(neck|rpn|box_head)/.*",)
    if variant == "scratch":
        common.from_scratch(config)
    return config

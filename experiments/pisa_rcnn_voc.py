"""Faster R-CNN-50 with FPN and PISA on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/pisa_rcnn_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: data and schedule are
those of `faster_rcnn_voc`.  `:scratch` trains from random weights.

Expected: VOC 07+12 | 12 epochs, not timed | 37 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_rcnn", num_classes=20, predict_sampling_ratio=0)
    common.voc_1x(config)
    config.optim.update(milestones=(9,), warmup_steps=0)
    common.from_imagenet(config, "experiments/pisa_rcnn_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

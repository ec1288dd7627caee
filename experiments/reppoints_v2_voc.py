"""RepPoints V2-50 on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/reppoints_v2_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: data and schedule are
those of `retinanet_voc`, with the clipping of `reppoints_v2_coco`.  `:scratch` trains from random
weights.

Expected: VOC 07+12 | 12 epochs, not timed | 48 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("reppoints_v2", num_classes=20)
    common.voc_1x(config)
    config.optim.clip_norm = 35.0
    common.from_imagenet(config, "experiments/reppoints_v2_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""RetinaNet-50 on PASCAL VOC 07+12, tested on 07 (mmdetection's `retinanet_r50_fpn_1x_voc0712`).

    python -m detlab.train --config experiments/retinanet_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference's 4 epochs repeat the data three times; here that
is 12 epochs.  `:scratch` trains from random weights.

Expected: VOC 07+12 | 12 epochs, not timed | 32 GB for 16 images | mAP07 0.792, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("retinanet", num_classes=20)
    common.voc_1x(config)
    common.from_imagenet(config, "experiments/retinanet_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

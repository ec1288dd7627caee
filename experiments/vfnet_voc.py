"""VFNet-50 on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/vfnet_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: data and schedule are
those of `retinanet_voc`, and the optimizer is that of `vfnet_coco`.  `:scratch` trains from random
weights.

Expected: VOC 07+12 | 12 epochs, not timed | 36 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("vfnet", num_classes=20)
    common.voc_1x(config)
    config.optim.update(no_decay=(r"params/.*(?<!/norm)/bias",), warmup_factor=0.1)
    common.from_imagenet(config, "experiments/vfnet_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

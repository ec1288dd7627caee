"""PAA-50 on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/paa_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: the schedule is that
of `retinanet_voc`.  `:scratch` trains from random weights.

Expected: VOC 07+12 | 12 epochs, not timed | 38 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("paa", num_classes=20)
    common.voc_1x(config)
    config.eval.threshold = config.predict.threshold = 0.5  # scores are square roots
    common.from_imagenet(config, "experiments/paa_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

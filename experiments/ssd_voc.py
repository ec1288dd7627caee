"""SSD300 on PASCAL VOC 07+12, tested on 07 (mmdetection's `ssd300_voc0712`).

    python -m detlab.train --config experiments/ssd_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  An epoch shows the data ten times, as in the reference.  `:512`
is SSD512 (published mAP07 0.795); `:scratch` starts from random weights.

Expected: VOC 07+12 | 24 epochs, not timed | 49 GB for 64 images | mAP07 0.765, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import ssd

VARIANTS = ssd.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ssd", num_classes=20, **ssd.voc_fields(variant))
    common.voc_files(config)
    ssd.training(config, variant, lr=0.001, milestones=(16, 20), repeat=10)
    ssd.start(config, variant, "experiments/ssd_voc.py")
    return config

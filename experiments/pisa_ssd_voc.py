"""SSD300 with prime sample attention on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/pisa_ssd_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: anchors, data and
schedule are those of `ssd_voc`.  `:512` is SSD512; `:scratch` starts from random weights.

Expected: VOC 07+12 | 24 epochs, not timed | 49 GB for 64 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import ssd

VARIANTS = ssd.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_ssd", num_classes=20, **ssd.voc_fields(variant))
    common.voc_files(config)
    ssd.training(config, variant, lr=0.001, milestones=(16, 20), repeat=10)
    config.optim.clip_norm = 35.0
    ssd.start(config, variant, "experiments/pisa_ssd_voc.py")
    return config

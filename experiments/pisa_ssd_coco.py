"""SSD300 with prime sample attention on COCO 2017 (mmdetection's `pisa_ssd300_coco`).

    python -m detlab.train --config experiments/pisa_ssd_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  An epoch shows the data five times, as in the
reference.  `:512` is SSD512 (published AP 31.8); `:scratch` starts from random weights.

Expected: COCO 2017 | 24 epochs, not timed | 50 GB for 64 images | AP 0.276, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import ssd

VARIANTS = ssd.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_ssd", **ssd.fields(variant))
    common.coco_files(config)
    ssd.training(config, variant, lr=0.002, milestones=(16, 22), repeat=5)
    config.optim.clip_norm = 35.0
    ssd.start(config, variant, "experiments/pisa_ssd_coco.py")
    return config

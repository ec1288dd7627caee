"""SSD300 on COCO 2017 (mmdetection's `ssd300_coco`).

    python -m detlab.train --config experiments/ssd_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  An epoch shows the data five times, as in the
reference.  `:512` is SSD512 (published AP 29.5); `:scratch` starts from random weights.
`:torchvision` is for the weights of torchvision's `ssd300_vgg16` (published AP 25.1).

Expected: COCO 2017 | 24 epochs, not timed | 50 GB for 64 images | AP 0.255, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import ssd

VARIANTS = (*ssd.VARIANTS, "torchvision")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ssd", **ssd.fields(variant))
    common.coco_files(config)
    ssd.training(config, variant, lr=0.002, milestones=(16, 22), repeat=5)
    ssd.start(config, variant, "experiments/ssd_coco.py")
    if variant == "torchvision":
        config.model.update(
            clip_anchors=True,
            pixel_mean=(122.99925, 116.9991, 103.9992),  # 255 times that of torchvision
            score_threshold=0.01,
        )
    return config

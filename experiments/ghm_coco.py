"""RetinaNet-50 with GHM on COCO 2017, 1x schedule (mmdetection's `retinanet_r50_fpn_ghm-1x_coco`).

    python -m detlab.train --config experiments/ghm_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 64 GB for 16 images | AP 0.370, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ghm")
    common.coco_1x(config)
    config.optim.clip_norm = 35.0
    common.from_imagenet(config, "experiments/ghm_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

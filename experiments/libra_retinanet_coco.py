"""Libra RetinaNet-50 on COCO 2017, 1x schedule (mmdetection's `libra-retinanet_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/libra_retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 67 GB for 16 images | AP 0.376, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("libra_retinanet")
    common.coco_1x(config)
    common.from_imagenet(config, "experiments/libra_retinanet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""RetinaNet-50 with SABL on COCO 2017 (mmdetection's `sabl-retinanet_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/sabl_retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:gn` has group norms in the head (published AP
38.8).  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 61 GB for 16 images | AP 0.377, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = {"": dict(), "gn": dict(norm="group"), "scratch": dict()}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("sabl_retinanet", **VARIANTS[variant])
    common.coco_1x(config)
    common.from_imagenet(config, "experiments/sabl_retinanet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""PAA-50 on COCO 2017, 1x schedule (mmdetection's `paa_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/paa_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 65 GB for 16 images | AP 0.404, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("paa")
    common.coco_1x(config)
    config.eval.threshold = config.predict.threshold = 0.5  # scores are square roots
    common.from_imagenet(config, "experiments/paa_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""VFNet-50 on COCO 2017, 1x schedule (mmdetection's `vfnet_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/vfnet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:scratch` trains from random weights.  In the
reference, biases have twice the learning rate of weights; here all parameters have one rate.

Expected: COCO 2017 | 12 epochs, not timed | 63 GB for 16 images | AP 0.416, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("vfnet")
    common.coco_1x(config)
    config.optim.update(no_decay=(r"params/.*(?<!/norm)/bias",), warmup_factor=0.1)
    common.from_imagenet(config, "experiments/vfnet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

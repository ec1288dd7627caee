"""RetinaNet-50 with PISA on COCO 2017, 1x schedule.

The reference is mmdetection's `retinanet-r50_fpn_pisa_1x_coco`.

    python -m detlab.train --config experiments/pisa_retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 67 GB for 16 images | AP 0.369, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_retinanet")
    common.coco_1x(config)
    common.from_imagenet(config, "experiments/pisa_retinanet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

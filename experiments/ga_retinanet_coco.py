"""RetinaNet-50 with guided anchors on COCO 2017, 1x (`ga-retinanet_r50-caffe_fpn_1x_coco`).

    python -m detlab.train --config experiments/ga_retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The name is mmdetection's; the backbone is that
of Detectron2.  `:pytorch` starts from torchvision's (no published AP), `:scratch` from random
weights.

Expected: COCO 2017 | 12 epochs, not timed | 62 GB for 16 images | AP 0.369, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("pytorch", "scratch")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ga_retinanet")
    common.coco_1x(config)
    config.optim.clip_norm = 35.0
    start = common.from_imagenet if variant == "pytorch" else common.from_caffe
    start(config, "experiments/ga_retinanet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""RetinaNet-50 with guided anchors on COCO 2017, 1x schedule (`ga-retinanet_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/ga_retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The name is that of mmdetection, which publishes
AP 36.9 for `:caffe`, with the backbone of Detectron2, and nothing for the plain form.  `:scratch`
trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 60 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("caffe", "scratch")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ga_retinanet")
    common.coco_1x(config)
    config.optim.clip_norm = 35.0
    start = common.from_caffe if variant == "caffe" else common.from_imagenet
    start(config, "experiments/ga_retinanet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

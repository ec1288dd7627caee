"""Faster R-CNN-50 with guided anchors on COCO 2017 (`ga-faster-rcnn_r50-caffe_fpn_1x_coco`).

    python -m detlab.train --config experiments/ga_rcnn_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The name is mmdetection's; the backbone is that
of Detectron2.  `:pytorch` starts from torchvision's (no published AP), `:scratch` from random
weights.  Prediction samples RoIs as the reference does, so published weights give the same scores.

Expected: COCO 2017 | 12 epochs, not timed | 68 GB for 16 images | AP 0.396, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("pytorch", "scratch")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ga_rcnn", predict_sampling_ratio=0)
    common.coco_1x(config)
    config.optim.update(lr=0.02, clip_norm=35.0)
    start = common.from_imagenet if variant == "pytorch" else common.from_caffe
    start(config, "experiments/ga_rcnn_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

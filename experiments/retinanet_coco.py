"""RetinaNet-50 on COCO 2017, 1x schedule (mmdetection's `retinanet_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:caffe` has the backbone of Detectron2
(published AP 36.3); `:caffe_mstrain` also draws the short side of each training image from 640 to
800 px.  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 67 GB for 16 images | AP 0.365, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("caffe", "caffe_mstrain", "scratch")
NAME = "experiments/retinanet_coco.py"
SHORT_SIDES = (640, 672, 704, 736, 768, 800)  # px, of :caffe_mstrain


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("retinanet")
    common.coco_1x(config)
    if variant.startswith("caffe"):
        common.from_caffe(config, NAME)
    else:
        common.from_imagenet(config, NAME)
    if variant == "caffe_mstrain":
        config.data.multiscale_limits = tuple((1333, side) for side in SHORT_SIDES)
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""Faster R-CNN-50 with FPN and PISA on COCO 2017.

The reference is mmdetection's `faster-rcnn_r50_fpn_pisa_1x_coco`.

    python -m detlab.train --config experiments/pisa_rcnn_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:scratch` trains from random weights.
Prediction samples RoIs as the reference does, so published weights give the same scores.

Expected: COCO 2017 | 12 epochs, not timed | 62 GB for 16 images | AP 0.384, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_rcnn", predict_sampling_ratio=0)
    common.coco_1x(config)
    config.optim.lr = 0.02
    common.from_imagenet(config, "experiments/pisa_rcnn_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

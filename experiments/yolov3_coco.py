"""YOLOv3 on COCO 2017 (mmdetection's `yolov3_d53_8xb8-ms-608-273e_coco`).

    python -m detlab.train --config experiments/yolov3_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  Training is at 320 to 608 px, testing at 608.
AP 33.7 is that of the reference's file of 2021 (`..._20210518_115020-a2c3acb8.pth`); its older file
(`...-139f5633.pth`) has 33.4.  `:416` trains at 320 to 416 px and tests at 416 (AP 30.9), `:320`
does both at 320 (AP 27.9), `:scratch` starts from random weights.

Expected: COCO 2017 | 273 epochs, not timed | 60 GB for 64 images | AP 0.337, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import yolov3

VARIANTS = {"": 608, "416": 416, "320": 320, "scratch": 608}  # px of the canvas


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("yolov3")
    side = VARIANTS[variant]
    common.coco_files(config)
    config.data.canvases = ((side, side),)
    if side > 320:
        config.data.update(multiscale_limits=((320, 320), (side, side)), multiscale="range")
    yolov3.training(config, epochs=273, milestones=(218, 246), warmup_steps=2000)
    yolov3.start(config, variant, "experiments/yolov3_coco.py")
    return config

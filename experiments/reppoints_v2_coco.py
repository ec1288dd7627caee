"""RepPoints V2-50 on COCO 2017, 1x schedule (the authors' `reppoints_v2_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/reppoints_v2_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:giou` trains boxes by GIoU (published AP
41.1); `:giou_2x` also for 24 epochs with short sides from 480 to 960 px, on a larger canvas
(AP 43.9; 100 GB).  `:scratch` trains from random weights.

Expected: COCO 2017 | 12 epochs, not timed | 83 GB for 16 images | AP 0.409, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("giou", "giou_2x", "scratch")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("reppoints_v2")
    common.coco_1x(config)
    config.optim.clip_norm = 35.0
    if variant.startswith("giou"):
        config.model.update(box_loss="giou", init_weight=1.0, refine_weight=2.0)
    if variant == "giou_2x":
        config.train.epochs = 24
        config.optim.milestones = (16, 22)
        config.data.update(
            canvases=((960, 1344), (1344, 960)),
            multiscale_limits=((1333, 480), (1333, 960)),
            multiscale="range",
        )
    common.from_imagenet(config, "experiments/reppoints_v2_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

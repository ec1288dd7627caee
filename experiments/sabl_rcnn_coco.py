"""SABL R-CNN-50 with FPN on COCO 2017 (mmdetection's `sabl-faster-rcnn_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/sabl_rcnn_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  `:cascade` has three stages, as
`sabl-cascade-rcnn_r50_fpn_1x_coco` (published AP 41.6; 65 GB).  `:scratch` trains from random
weights.  Prediction samples RoIs as the reference does, so published weights give the same scores.

Expected: COCO 2017 | 12 epochs, not timed | 61 GB for 16 images | AP 0.399, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

# The RPN and the stages of Cascade R-CNN; RoIs are enlarged less from stage to stage.
CASCADE = dict(
    train_proposals=2000,
    rpn_crossing=False,
    rpn_box_beta=1 / 9,
    stage_ious=(0.5, 0.6, 0.7),
    stage_scales=(1.7, 1.5, 1.3),
    stage_weights=(1.0, 0.5, 0.25),
)
VARIANTS = {"": {}, "cascade": CASCADE, "scratch": {}}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("sabl_rcnn", predict_sampling_ratio=0, **VARIANTS[variant])
    common.coco_1x(config)
    config.optim.lr = 0.02
    common.from_imagenet(config, "experiments/sabl_rcnn_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

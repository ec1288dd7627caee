"""Faster R-CNN with ResNet-50 and FPN on PASCAL VOC 07+12, evaluated on the test split of 07.

    python -m detlab.train --config experiments/faster_rcnn_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The schedule is mmdetection's for VOC, whose 4 epochs repeat
the data three times: here 12 epochs, lr 0.01 for 16 images, without warm-up, divided by 10 after
epoch 9.  `:scratch` trains from random weights.  Prediction samples RoIs as the reference does.

Expected: VOC 07+12 | 12 epochs, not timed | 35 GB for 16 images | mAP07 0.795, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("faster_rcnn", num_classes=20, predict_sampling_ratio=0)
    common.voc_1x(config)
    config.optim.update(milestones=(9,), warmup_steps=0)
    common.from_imagenet(config, "experiments/faster_rcnn_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

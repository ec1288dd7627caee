"""YOLOv3 on PASCAL VOC 07+12, tested on 07, at 416 px.

    python -m detlab.train --config experiments/yolov3_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  Losses, data and optimizer are those of yolov3_coco.py, which
has a published figure; this one has none.  150 epochs see about as many images as 21 of COCO.
`:scratch` starts from random weights.

Expected: VOC 07+12 | 150 epochs, not timed | 27 GB for 64 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import yolov3

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("yolov3", num_classes=20)
    common.voc_files(config)
    config.data.update(
        canvases=((416, 416),), multiscale_limits=((320, 320), (416, 416)), multiscale="range"
    )
    yolov3.training(config, epochs=150, milestones=(120, 135), warmup_steps=1000)
    yolov3.start(config, variant, "experiments/yolov3_voc.py")
    return config

"""YOLOv5 on PASCAL VOC 07+12, tested on 07: `:n`, `:s` (default), `:m`, `:l`, `:x`.

    python -m detlab.train --config experiments/yolov5_voc.py --config.data.root=VOCdevkit

Training starts from random weights.  `--config.init_from=weights/yolov5s` starts from COCO weights
(experiments/yolov5_coco.py shows how to convert them), without the predictors, which are for other
classes; then 50 epochs are enough (`--config.train.epochs=50`).

Expected: VOC 07+12 | 300 epochs, not timed | 21 GB for 64 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import yolov5

VARIANTS = yolov5.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    variant = variant or "s"
    config = common.base("yolov5", num_classes=20)
    yolov5.network(config, variant)
    yolov5.training(config, variant, side=640, warmup_steps=780)
    common.voc_files(config)
    config.data.max_boxes = 200  # for mosaics
    return config

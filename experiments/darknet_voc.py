r"""Darknet's YOLO on PASCAL VOC: yolov4 (default), `:yolov3`, `:yolov3_tiny`, `:yolov4_tiny`.

    python -m detlab.train --config experiments/darknet_voc.py:yolov4_tiny \
        --config.data.root=VOCdevkit

Training follows darknet, see experiments/recipes/darknet.py, with 2000 batches per class as its
authors advise, and was not run at this length.  It starts from random weights.  To start from
published weights, convert a cut-off file (`yolov4.conv.137`), or a complete file with
--reset_classes, and pass the folder with --config.init_from.

Expected: VOC 07+12 | 40000 steps, not timed | 34 GB for 64 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import darknet

VARIANTS = darknet.NETWORKS


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("darknet", cfg=VARIANTS[variant], num_classes=20)
    darknet.training(config, VARIANTS[variant])
    common.voc_files(config)
    config.train.steps = 40000
    config.optim.milestones = (32000, 36000)
    return config

"""Darknet's networks on PASCAL VOC: yolov4 (default), or `:yolov3`, `:yolov3_tiny`, `:yolov4_tiny`.

    python -m detlab.train --config experiments/darknet_voc.py:yolov4_tiny \\
        --config.data.root=VOCdevkit

Training is darknet's, see `common.darknet_training`, for 2000 batches a class as its authors
advise, and was not run at this length.  It starts from random weights; to start from published
ones, convert a cut-off file (`yolov4.conv.137`) or a whole one with --reset_classes, and name the
folder with --config.init_from.
"""

from ml_collections import ConfigDict

from experiments import common

VARIANTS = {
    "": "yolov4",
    "yolov4": "yolov4",
    "yolov3": "yolov3",
    "yolov3_tiny": "yolov3-tiny",
    "yolov4_tiny": "yolov4-tiny",
}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(f"'{name}'" for name in VARIANTS if name)
        raise ValueError(f"variant {variant!r} is unknown; there are {known}.")
    config = common.base("darknet")
    config.model = ConfigDict(dict(cfg=VARIANTS[variant], num_classes=20, dtype="float32"))
    common.voc_files(config)
    common.darknet_training(config, VARIANTS[variant])
    config.data.max_boxes = 64
    config.train.steps = 40000
    config.optim.milestones = (32000, 36000)
    config.eval.update(best_by="mAP07")
    return config

"""YOLOv5 on PASCAL VOC 07+12, tested on 07: `:n`, `:s` (default), `:m`, `:l`, `:x`.

    python -m detlab.train --config experiments/yolov5_voc.py --config.data.root=VOCdevkit

From random weights.  From COCO weights, which experiments/yolov5_coco.py tells how to convert, with
`--config.init_from=weights/yolov5s`; the predictors, of other classes, are then left out, and 50
epochs are enough (`--config.train.epochs=50`).
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    variant = variant or "s"
    config = common.base("yolov5")
    config.model = ConfigDict(dict(num_classes=20, dtype="float32"))
    common.yolov5_network(config, variant)
    common.voc_files(config)
    common.yolov5_training(config, variant, side=640, warmup_steps=780)
    config.init_skip = ("params/head/.*",)
    config.eval.update(best_by="mAP07")
    return config

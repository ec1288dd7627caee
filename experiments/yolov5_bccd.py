r"""YOLOv5 on BCCD, 364 microscope images of blood cells in VOC layout: `:n` (default), `:s` ...

    python -m detlab.train --config experiments/yolov5_bccd.py --config.data.root=BCCD \
        --config.init_from=weights/yolov5n

Training starts from COCO weights (experiments/yolov5_coco.py shows how to convert them), without
the predictors, which are for other classes.  Without `init_from`, it starts from random weights.
The root holds Annotations, ImageSets and JPEGImages.

Expected: BCCD | 40 epochs, not timed | 1.1 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import yolov5

VARIANTS = yolov5.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    variant = variant or "n"
    config = common.base("yolov5", num_classes=3)
    yolov5.network(config, variant)
    yolov5.training(config, variant, side=416, warmup_steps=54)
    common.bccd_files(config)
    config.data.max_boxes = 120
    config.eval.rectangles = 0  # all pictures have the same size, and one program is enough
    config.train.update(batch_size=16, epochs=40, log_every=10, eval_every=90)
    config.optim.update(ema_decay=0.999, ema_warmup=200)  # 730 updates in all
    return config

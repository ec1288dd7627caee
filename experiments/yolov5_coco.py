r"""YOLOv5 on COCO 2017: `:n`, `:s` (default), `:m`, `:l`, `:x` of releases 6.0 to 7.0.

    python -m converters.convert --source yolov5 --config experiments/yolov5_coco.py \
        --input yolov5s.pt --output weights/yolov5s
    python -m detlab.demo --workdir weights/yolov5s --input photos --output found
    python -m detlab.eval --workdir weights/yolov5s --config.data.root=coco
    python -m detlab.train --config experiments/yolov5_coco.py --config.data.root=coco

`:s6` and its like have four levels, for 1280 px; `:s_v5` and `:s_v3` are of releases 4.0 to 5.0 and
of 3.0.  The conversion finds out the size and release of a file by itself, and its folder keeps
them, so `--workdir` needs no variant.  Other thresholds are `--config.model.nms_iou=0.45` and, for
one class a box, `--config.model.multi_label=False` (the reference's detect.py).

The root holds train2017, val2017 and annotations.  The reference publishes AP 28.0 for n, 45.4,
49.0 and 50.7 for m, l and x (release 7.0); it evaluates on letterboxes that are as small as each
picture lets them be, here all are square.

Expected: COCO 2017 | 300 epochs, not timed | 23 GB for 64 images | AP 0.374, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import yolov5

VARIANTS = yolov5.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    variant = variant or "s"
    config = common.base("yolov5")
    common.coco_files(config)
    yolov5.network(config, variant)
    yolov5.training(config, variant, side=1280 if "6" in variant else 640, warmup_steps=5500)
    return config

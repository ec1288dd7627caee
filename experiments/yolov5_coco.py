r"""YOLOv5 on COCO 2017: `:n`, `:s` (default), `:m`, `:l`, `:x` of releases 6.0 to 7.0.

    python -m converters.convert --source yolov5 --config experiments/yolov5_coco.py \
        --input yolov5s.pt --output weights/yolov5s
    python -m detlab.demo --workdir weights/yolov5s --input photos --output found
    python -m detlab.eval --workdir weights/yolov5s --config.data.root=coco
    python -m detlab.train --config experiments/yolov5_coco.py --config.data.root=coco

`:s6` and similar variants have four levels, for 1280 px; `:s_v5` is for releases 4.0 to 5.0 and
`:s_v3` for 3.0.  The conversion detects the size and release of a file and stores them in its
folder, so `--workdir` needs no variant.  The demo has the settings of the reference's detect.py,
and evaluation those of its val.py.

The root holds train2017, val2017 and annotations.  The reference publishes AP 28.0 for n, and 45.4,
49.0 and 50.7 for m, l and x (release 7.0).

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

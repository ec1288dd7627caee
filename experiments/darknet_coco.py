r"""Darknet's networks on COCO 2017: yolov4 (default), or `:yolov3`, `:yolov3_tiny`, `:yolov4_tiny`.

    python -m converters.convert --config experiments/darknet_coco.py:yolov4_tiny \
        --input yolov4-tiny.weights --names coco.names --output weights/yolov4_tiny
    python -m detlab.eval --config experiments/darknet_coco.py:yolov4_tiny \
        --checkpoint weights/yolov4_tiny --config.data.root=coco

Training follows darknet, see experiments/recipes/darknet.py, and was not run at this length.
Images are stretched to the canvas, as in `darknet detector test`.

Expected: COCO 2017 | 500500 steps, not timed | 34 GB for 64 images | AP 0.435 test-dev, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import darknet

VARIANTS = darknet.NETWORKS


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("darknet", cfg=VARIANTS[variant])
    common.coco_files(config)
    darknet.training(config, VARIANTS[variant])
    return config

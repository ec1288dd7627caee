"""Darknet's networks on COCO 2017: yolov4 (default), or `:yolov3`, `:yolov3_tiny`, `:yolov4_tiny`.

    python -m converters.convert --config experiments/darknet_coco.py:yolov4_tiny \\
        --input yolov4-tiny.weights --names coco.names --output weights/yolov4_tiny
    python -m detlab.eval --config experiments/darknet_coco.py:yolov4_tiny \\
        --checkpoint weights/yolov4_tiny --config.data.root=coco

Training is darknet's, see `common.darknet_training`, and was not run at this length.  Pictures are
stretched to the canvas, as `darknet detector test` does.
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
    config.model = ConfigDict(dict(cfg=VARIANTS[variant], num_classes=80, dtype="float32"))
    common.coco_files(config)
    common.darknet_training(config, VARIANTS[variant])
    return config

"""Darknet's networks with fewer channels on generated shapes: tiny YOLOv4 on a laptop.

    python -m detlab.train --config experiments/darknet_shapes.py

`:yolov3_tiny` and `:yolov4_tiny` (the default) have half of their channels, `:yolov3` and `:yolov4`
a quarter, at several times the cost.  Pictures of 128 px are drawn at 160, as the anchors of the
cfgs are made for larger ones.  Optimizer and schedule are those of yolov3_shapes.py.
"""

from ml_collections import ConfigDict

from experiments import common

VARIANTS = {
    "": "yolov4-tiny",
    "yolov3": "yolov3",
    "yolov3_tiny": "yolov3-tiny",
    "yolov4": "yolov4",
    "yolov4_tiny": "yolov4-tiny",
}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(f"'{name}'" for name in VARIANTS if name)
        raise ValueError(f"variant {variant!r} is unknown; there are {known}.")
    config = common.base("darknet")
    network = VARIANTS[variant]
    width = 0.5 if "tiny" in network else 0.25
    config.model = ConfigDict(dict(cfg=network, num_classes=4, width_multiple=width))
    config.data.update(source="shapes", canvases=((160, 160),), pad_value=(0, 0, 0), max_boxes=8)
    config.train.update(
        batch_size=8, steps=1100, log_every=10, eval_every=275, checkpoint_every=100
    )
    config.optim.update(
        name="adamw",
        lr=1.5e-3,
        lr_batch_size=8,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=50,
        warmup_factor=0.01,
        clip_norm=35.0,
    )
    return config

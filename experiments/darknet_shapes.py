"""Darknet's networks with fewer channels on generated shapes: tiny YOLOv4 for a laptop.

    python -m detlab.train --config experiments/darknet_shapes.py

`:yolov3_tiny` and `:yolov4_tiny` (the default) have half of their channels; `:yolov3` and `:yolov4`
have a quarter and cost several times as much.  Images of 128 px are enlarged to 160 px, because the
anchors of the cfgs are made for larger images.  Optimizer and schedule are those of
yolov3_shapes.py.

`:overfit_yolov4_tiny` and similar variants are for benchmarks.overfit, `:tiny` is for tests.

Expected: shapes | about 4 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.175, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import darknet, small


def _section(name: str, **values) -> str:
    return "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in values.items()), ""])


def _conv(filters: int, size: int = 3, activation: str = "leaky", **values) -> str:
    values = dict(filters=filters, size=size, pad=1, activation=activation, **values)
    return _section("convolutional", **values)


def _head(mask: str, **values) -> str:
    shapes = dict(anchors="18,18, 18,26, 26,18, 36,36", num=4, mask=mask, classes=3)
    return _conv(2 * (5 + 3), 1, "linear") + _section("yolo", **shapes, **values)


# A head of YOLOv4 at stride 16 and one of YOLOv3 at stride 8.
TINY = "".join(
    [
        _section("net", width=96, height=64, channels=3),
        _conv(8, stride=2, batch_normalize=1),
        _conv(8, activation="mish", stride=2, batch_normalize=1),
        _section("maxpool", size=2, stride=2),
        _conv(16, stride=2, batch_normalize=1, groups=2),
        _head("2,3", iou_loss="ciou", iou_thresh=0.2, iou_normalizer=0.07, scale_x_y=1.05),
        _section("route", layers=-3),
        _section("upsample", stride=2),
        _section("route", layers="-1,2"),
        _head("0,1"),
    ]
)
VARIANTS = {
    **{
        variant: dict(cfg=cfg, width_multiple=0.5 if "tiny" in cfg else 0.25)
        for variant, cfg in (darknet.NETWORKS | {"": "yolov4-tiny"}).items()
    },
    **{
        f"overfit_{variant}": dict(cfg=cfg, width_multiple=0.25)
        for variant, cfg in darknet.NETWORKS.items()
        if variant
    },
    "tiny": dict(cfg=TINY),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("darknet", **VARIANTS[variant])
    # Objects are small for the anchors of tiny networks.  Running statistics follow those of the
    # batch slowly (0.99), so they need many steps.
    side = 160 if "tiny" in variant else 128
    small.shapes(config, variant, clip_norm=35.0, overfit_steps=800, overfit_side=side)
    if variant in darknet.NETWORKS:
        config.data.update(canvases=((160, 160),), pad_value=(0, 0, 0))
    return config

"""Darknet's networks with fewer channels on generated shapes: tiny YOLOv4 for a laptop.

    python -m detlab.train --config experiments/darknet_shapes.py

`:yolov3_tiny` and `:yolov4_tiny` (the default) have half of their channels; `:yolov3` and `:yolov4`
have a quarter and cost several times as much.  Images of 128 px are enlarged to 160 px, because the
anchors of the cfgs are made for larger images.  Optimizer and schedule are those of
yolov3_shapes.py.

`:overfit_yolov4_tiny` and similar variants are for benchmarks.overfit, `:tiny` is for tests.
`:overfit_region`, `:overfit_new_coords` and `:overfit_gaussian` have few layers and the heads of
YOLOv2, of yolov4-csp and of Gaussian YOLOv3, with the keys of their published cfgs.

Expected: shapes | about 2 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.410, seed 0
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


# A head of YOLOv4 at stride 16, one of YOLOv3 at stride 8 and one of YOLOv2 at stride 16.
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
        _section("route", layers=3),
        _conv(2 * (5 + 3), 1, "linear"),
        _section("region", anchors="1,1, 2,2", num=2, classes=3, softmax=1, bias_match=1),
    ]
)


def _backbone(activation: str) -> str:
    """Layers 0 to 4, with strides of 2, 4, 8, 16 and 16."""
    widths, strides = (16, 32, 64, 128, 128), (2, 2, 2, 2, 1)
    values = dict(batch_normalize=1, activation=activation)
    convs = (_conv(w, stride=s, **values) for w, s in zip(widths, strides, strict=True))
    return _section("net", width=128, height=128, channels=3) + "".join(convs)


def _two_heads(kind: str, entries: int, activation: str, last: str, **values) -> str:
    """Heads at strides 16 and 8; before a head is a convolution with the activation `last`."""
    anchors = "16,16, 18,30, 30,18, 32,32, 36,54, 60,48"
    values = dict(anchors=anchors, num=6, classes=4, **values)

    def head(mask):
        return _conv(3 * (entries + 4), 1, last) + _section(kind, mask=mask, **values)

    return "".join(
        [
            _backbone(activation),
            head("3,4,5"),
            _section("route", layers=4),
            _conv(64, 1, activation, batch_normalize=1),
            _section("upsample", stride=2),
            _section("route", layers="-1,2"),
            _conv(64, 3, activation, batch_normalize=1),
            head("0,1,2"),
        ]
    )


HEADS = {
    "region": "".join(
        [
            _backbone("leaky"),
            _section("route", layers=2),
            _conv(16, 1, batch_normalize=1),
            _section("reorg", stride=2),
            _section("route", layers="-1,4"),
            _conv(128, batch_normalize=1),
            _conv(5 * (5 + 4), 1, "linear"),
            _section(
                "region",
                anchors="1,1, 1.2,2, 2,1.2, 2.2,2.2, 3.5,3.5",
                num=5,
                classes=4,
                bias_match=1,
                softmax=1,
                rescore=1,
                object_scale=5,
                thresh=0.6,
            ),
        ]
    ),
    "new_coords": _two_heads(
        *("yolo", 5, "mish", "logistic"),
        new_coords=1,
        scale_x_y=2.0,
        ignore_thresh=0.7,
        iou_thresh=0.2,
        iou_normalizer=0.05,
        cls_normalizer=0.5,
        obj_normalizer=0.4,
        iou_loss="ciou",
        nms_kind="diounms",
        max_delta=20,
    ),
    "gaussian": _two_heads(
        *("Gaussian_yolo", 9, "leaky", "linear"),
        ignore_thresh=0.7,
        iou_thresh=0.213,
        uc_normalizer=1.0,
        iou_normalizer=0.5,
        iou_loss="giou",
    ),
}
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
    **{f"overfit_{name}": dict(cfg=cfg) for name, cfg in HEADS.items()},
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

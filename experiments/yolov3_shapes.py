"""A small YOLOv3 on generated shapes, for a laptop: a grid detector.

    python -m detlab.train --config experiments/yolov3_shapes.py

Figures are for 200 held-out images; AP50 is 0.91.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 8 minutes on 1 CPU core | 0.2 GB for 8 images | AP 0.534, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

# Anchor sides are the midpoints of the three thirds of the range 16 to 70 px.
VARIANTS = {
    "": dict(
        backbone_width=16,
        backbone_blocks=(1, 1, 2, 2, 1),
        neck_width=32,
        head_width=64,
        anchor_sizes=small.anchors(25, 43, 61),
    ),
    "overfit": dict(
        backbone_width=16,
        backbone_blocks=(1, 1, 1, 1, 1),
        neck_width=32,
        head_width=64,
        anchor_sizes=small.anchors(18, 32, 46),
    ),
    "tiny": dict(
        backbone_width=4,
        backbone_blocks=(1, 1, 1, 1, 1),
        neck_width=8,
        head_width=16,
        anchor_sizes=small.anchors(18, 26, 36),
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("yolov3", backbone_norm="batch", **VARIANTS[variant])
    small.shapes(config, variant, clip_norm=35.0)
    if not variant:
        config.data.pad_value = (0, 0, 0)
    return config

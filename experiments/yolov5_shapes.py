"""YOLOv5n on generated shapes, for a laptop: a network of release 7.0.

    python -m detlab.train --config experiments/yolov5_shapes.py

Data, optimizer and schedule are those of `yolov3_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 4 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.538, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

# Anchor sides are the midpoints of the three thirds of the range 16 to 70 px.
VARIANTS = {
    "": dict(width_multiple=0.25, anchor_sizes=small.anchors(25, 43, 61), train_size=128),
    "overfit": dict(width_multiple=0.25),
    "overfit_release3": dict(
        width_multiple=0.25,
        block="csp",
        activation="hard_swish",
        stem="focus",
        pool="spp",
        repeats=(3, 9, 9, 3),
    ),
    "tiny": dict(
        width_multiple=0.0625,
        repeats=(1, 1, 1, 1),
        neck_repeats=1,
        anchor_sizes=small.anchors(18, 26, 36),
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("yolov5", **VARIANTS[variant])
    small.shapes(config, variant, clip_norm=100.0, overfit_steps=400, overfit_side=160)
    if not variant:
        config.data.pad_value = (114, 114, 114)
    return config

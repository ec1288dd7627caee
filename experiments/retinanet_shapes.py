"""RetinaNet-18 on generated shapes: all steps from images to mAP on a laptop.

    python -m detlab.train --config experiments/retinanet_shapes.py

Figures are for 200 held-out images.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 4 minutes on 2 CPU cores | 0.1 GB for 8 images | AP 0.634, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(
        strides=(8, 16, 32),  # objects have at most 70 px
        octave_base_scale=4.0,  # anchors from 32 px, so that most objects are on the finest level
        delta_stds=(0.1, 0.1, 0.2, 0.2),
        box_weight=0.25,  # small stds make the box term large
    ),
    "overfit": dict(octave_base_scale=2.5),
    "tiny": dict(octave_base_scale=3.0),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("retinanet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

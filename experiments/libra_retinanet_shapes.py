"""Libra RetinaNet-18 on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/libra_retinanet_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | 1200 steps, not timed | 0.1 GB for 8 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(  # as in retinanet_shapes
        strides=(8, 16, 32),
        octave_base_scale=4.0,
        delta_stds=(0.1, 0.1, 0.2, 0.2),
        box_weight=0.25,
    ),
    "overfit": dict(octave_base_scale=2.5),
    "tiny": dict(octave_base_scale=3.0),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("libra_retinanet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

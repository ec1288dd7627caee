"""RetinaNet-18 with guided anchors on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/ga_retinanet_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 5 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.312, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

# Squares from 20 px: objects have at least 16 px, or 12 in `overfit`.
VARIANTS = {
    "": dict(octave_base_scale=2.5),
    "overfit": dict(octave_base_scale=2.0),
    "tiny": dict(octave_base_scale=2.5, deform_groups=2),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ga_retinanet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

"""RetinaNet-18 with GHM on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/ghm_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 5 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.150, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(strides=(8, 16, 32), octave_base_scale=4.0),  # as in retinanet_shapes
    "overfit": dict(octave_base_scale=2.5),
    "tiny": dict(octave_base_scale=3.0),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ghm", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

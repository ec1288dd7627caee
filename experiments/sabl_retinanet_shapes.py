"""RetinaNet-18 with SABL on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/sabl_retinanet_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 3 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.725, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

# Squares from 24 px: objects have at least 16 px, or 12 in `overfit`.
VARIANTS = {
    "": dict(octave_base_scale=3.0),
    "overfit": dict(octave_base_scale=2.5),
    "tiny": dict(octave_base_scale=3.0, num_buckets=6),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("sabl_retinanet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

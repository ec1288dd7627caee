"""A small CentripetalNet on generated shapes, for a laptop: corners that point to centres.

    python -m detlab.train --config experiments/centripetalnet_shapes.py

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 7 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.693, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import corner, small

VARIANTS = corner.ON_SHAPES


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("centripetalnet", **VARIANTS[variant])
    small.shapes(config, variant, clip_norm=35.0, overfit_steps=400)
    return config

"""A small CentripetalNet on generated shapes, for a laptop: corners that point to centres.

    python -m detlab.train --config experiments/centripetalnet_shapes.py

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 7 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.693, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(
        stacks=1, channels=(48, 48, 64, 96), blocks=(1, 1, 1, 1), pool_width=32, head_width=48
    ),
    "overfit": dict(
        stacks=1, channels=(32, 32, 48, 64), blocks=(1, 1, 1, 1), pool_width=24, head_width=32
    ),
    "tiny": dict(
        channels=(16, 16, 24),
        blocks=(1, 1, 1),
        pool_width=8,
        head_width=16,
        max_corners=20,
        num_candidates=50,
        max_detections=20,
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("centripetalnet", **VARIANTS[variant])
    small.shapes(config, variant, clip_norm=35.0, overfit_steps=400)
    return config

"""RepPoints V2-18 on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/reppoints_v2_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 6 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.509, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(pool_width=32, point_width=64),
    "overfit": dict(pool_width=32, point_width=48, norm_groups=16, point_scale=3.0),
    "tiny": dict(pool_width=8, point_width=16, norm_groups=4),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("reppoints_v2", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

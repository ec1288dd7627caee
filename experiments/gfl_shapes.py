"""GFL-18 on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/gfl_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 5 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.669, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(strides=(8, 16, 32), anchor_scale=4.0),  # objects have 16 to 70 px
    "overfit": dict(anchor_scale=3.0, norm_groups=16),
    "tiny": dict(anchor_scale=3.0, norm_groups=4),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("gfl", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

"""VFNet-18 on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/vfnet_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 6 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.593, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

# Anchors and level limits are at most half the paper's: objects have 16 to 70 px, or 12 to 52.
VARIANTS = {
    "": dict(anchor_scale=4.0, level_limits=(32.0, 64.0, 128.0, 256.0)),
    "overfit": dict(anchor_scale=3.0, level_limits=(24.0, 48.0, 96.0, 192.0), norm_groups=16),
    "tiny": dict(anchor_scale=3.0, level_limits=(24.0, 48.0, 96.0, 192.0), norm_groups=4),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("vfnet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

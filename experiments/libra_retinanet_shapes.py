"""Libra RetinaNet-18 on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/libra_retinanet_shapes.py

Anchors, data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 4 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.630, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = small.RETINANET  # anchors, and the weight of the box loss


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("libra_retinanet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

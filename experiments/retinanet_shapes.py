"""RetinaNet-18 on generated shapes: all steps from images to mAP on a laptop.

    python -m detlab.train --config experiments/retinanet_shapes.py

Figures are for 200 held-out images.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 4 minutes on 2 CPU cores | 0.1 GB for 8 images | AP 0.634, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = small.RETINANET  # anchors, and the weight of the box loss


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("retinanet", **small.dense(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

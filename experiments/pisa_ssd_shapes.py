"""A small SSD with prime sample attention on generated shapes, for a laptop.

    python -m detlab.train --config experiments/pisa_ssd_shapes.py

Network and training are those of `ssd_shapes`.  Figures are for 200 held-out images.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | 1200 steps, not timed | 0.1 GB for 8 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = ("overfit", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_ssd", **small.ssd(variant))
    small.shapes(config, variant)
    return config

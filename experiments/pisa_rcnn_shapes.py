"""A small Faster R-CNN with PISA on generated shapes, for a laptop: two stages.

    python -m detlab.train --config experiments/pisa_rcnn_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 5 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.754, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = ("overfit", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("pisa_rcnn", **small.two_stages(variant))
    small.shapes(config, variant)
    return config

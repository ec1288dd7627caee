"""A small SABL R-CNN on generated shapes, for a laptop: an RPN and a box head with buckets.

    python -m detlab.train --config experiments/sabl_rcnn_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny`, which has two stages, for tests.

Expected: shapes | about 5 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.802, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

TWO_STAGES = dict(stage_ious=(0.5, 0.6), stage_scales=(1.7, 1.5), stage_weights=(1.0, 0.5))
VARIANTS = {"": {}, "overfit": {}, "tiny": TWO_STAGES}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("sabl_rcnn", **small.two_stages(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

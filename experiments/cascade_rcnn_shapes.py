"""A small Cascade R-CNN on generated shapes, for a laptop: an RPN and three box heads.

    python -m detlab.train --config experiments/cascade_rcnn_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 6 minutes on 1 CPU core | 0.2 GB for 8 images | AP 0.814, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

TWO_STAGES = dict(
    stage_ious=(0.5, 0.6),
    stage_stds=((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1)),
    stage_weights=(1.0, 0.5),
)
VARIANTS = {"": {}, "overfit": {}, "tiny": TWO_STAGES}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("cascade_rcnn", **small.two_stages(variant), **VARIANTS[variant])
    small.shapes(config, variant)
    return config

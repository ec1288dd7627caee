"""A small Faster R-CNN on generated shapes, for a laptop: two stages.

    python -m detlab.train --config experiments/faster_rcnn_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 8 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.748, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = {
    "": dict(
        rpn_width=64,
        anchor_scale=6.0,  # 24 to 192 px: objects have at least 16 px
        rpn_samples=64,
        train_proposals_per_level=300,
        train_proposals=100,
        proposals_per_level=200,
        proposals=100,
        box_width=256,
        roi_scale=28.0,  # half the paper's, as the objects are small
        box_samples=64,
    ),
    "overfit": dict(
        rpn_width=48,
        anchor_scale=4.5,
        rpn_samples=64,
        train_proposals_per_level=200,
        train_proposals=64,
        proposals_per_level=100,
        proposals=64,
        box_width=128,
        roi_scale=21.0,
        box_samples=64,
    ),
    "tiny": dict(
        rpn_width=16,
        anchor_scale=6.0,
        rpn_samples=32,
        train_proposals_per_level=60,
        train_proposals=40,
        proposals_per_level=40,
        proposals=30,
        box_width=16,
        roi_scale=28.0,
        box_samples=24,
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    fields = dict(**small.resnet(variant), strides=(4, 8, 16, 32), **VARIANTS[variant])
    config = common.base("faster_rcnn", **fields)
    small.shapes(config, variant)
    return config

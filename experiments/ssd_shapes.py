"""A small SSD on generated shapes, for a laptop: default boxes on maps of four sizes.

    python -m detlab.train --config experiments/ssd_shapes.py

Figures are for 200 held-out images; AP50 is 0.80.

`:192` enlarges the images to 192 px, and the anchors with them (AP 0.585, AP50 0.93).

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 4 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.429, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small

VARIANTS = ("192", "overfit", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ssd", **small.ssd(variant))
    small.shapes(config, variant)
    if variant == "192":
        config.data.update(canvases=((192, 192),), resize="stretch")
    return config

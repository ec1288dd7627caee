"""FCOS-18 in its improved form on generated shapes, with 64 channels, for a laptop.

    python -m detlab.train --config experiments/fcos_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.

`:overfit` is for benchmarks.overfit, `:tiny` for tests.

Expected: shapes | about 5 minutes on 1 CPU core | 0.1 GB for 8 images | AP 0.553, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import fcos, small

IMPROVED = dict(**fcos.IMPROVED, pixel_std=(58.395, 57.12, 57.375))
# Level limits are at most half the paper's: objects have at least 16 px, or 12 in the last two.
VARIANTS = {
    "": dict(
        level_limits=(32.0, 64.0, 128.0, 256.0),
        nms_iou=0.6,
        pixel_mean=(123.675, 116.28, 103.53),
    ),
    "overfit": dict(level_limits=(24.0, 48.0, 96.0, 192.0), nms_iou=0.6, norm_groups=16),
    "tiny": dict(level_limits=(24.0, 48.0, 96.0, 192.0), conv_bias=True, norm_groups=4),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("fcos", **small.dense(variant), **IMPROVED, **VARIANTS[variant])
    small.shapes(config, variant)
    return config

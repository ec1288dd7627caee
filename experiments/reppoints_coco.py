"""RepPoints-50 on COCO 2017, 1x schedule (mmdetection's `reppoints-moment_r50_fpn-gn_head-gn_1x`).

    python -m detlab.train --config experiments/reppoints_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference's other forms are variants, some
with a published AP: `:plain`, without group norms, 37.0; `:minmax` and `:partial_minmax`, boxes by
the extreme points; `:bbox_grid`, 36.4, and `:bbox_grid_center`, 37.4, regressed boxes with grids
of points, whose first round learns by overlap or by the nearest point.  `:scratch` trains from
random weights.

Expected: COCO 2017 | 12 epochs, not timed | 59 GB for 16 images | AP 0.381, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = {
    "": dict(),
    "plain": dict(norm="none"),
    "minmax": dict(transform="minmax"),
    "partial_minmax": dict(transform="partial_minmax"),
    "bbox_grid": dict(transform="minmax", use_grid_points=True, init_assigner="max_iou"),
    "bbox_grid_center": dict(transform="minmax", use_grid_points=True),
    "scratch": dict(),
}


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("reppoints", **VARIANTS[variant])
    common.coco_1x(config)
    common.from_imagenet(config, "experiments/reppoints_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""RepPoints-50 on COCO 2017, 1x schedule (mmdetection's `reppoints-moment_r50_fpn-gn_head-gn_1x`).

    python -m detlab.train --config experiments/reppoints_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference's other forms are variants.
`:plain` has no group norms (published AP 37.0).  `:minmax` and `:partial_minmax` take boxes from
the extreme points (no published AP).  `:bbox_grid` (AP 36.4) and `:bbox_grid_center` (AP 37.4)
regress boxes with grids of points, whose first stage is assigned by overlap or by the nearest
point.  `:scratch` trains from random weights.

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

"""RetinaNet-50 with GHM on COCO 2017, 1x schedule (mmdetection's `retinanet_r50_fpn_ghm-1x_coco`).

    python -m detlab.train --config experiments/ghm_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference publishes AP 37.0.  `:scratch`
trains from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("ghm")
    config.model = ConfigDict(
        dict(num_classes=80, depth=50, backbone_norm="stored", frozen_stages=1, dtype="float32")
    )
    common.coco_files(config)
    config.data.update(
        canvases=((800, 1344), (1344, 800)),
        size_limits=(1333, 800),
    )
    common.schedule_1x(config)
    config.optim.update(clip_norm=35.0)
    common.from_imagenet(config, "experiments/ghm_coco.py")
    config.init_skip = ("params/(neck|head)/.*", "loss_state/.*")
    if variant == "scratch":
        common.from_scratch(config)
    return config

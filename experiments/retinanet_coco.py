"""RetinaNet-50 on COCO 2017, 1x schedule (mmdetection's `retinanet_r50_fpn_1x_coco`).

    python -m detlab.train --config experiments/retinanet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference publishes AP 36.5.  `:scratch`
trains from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("retinanet")
    config.model = ConfigDict(
        dict(num_classes=80, depth=50, backbone_norm="stored", frozen_stages=1, dtype="float32")
    )
    common.coco_files(config)
    config.data.update(
        canvases=((800, 1344), (1344, 800)),
        size_limits=(1333, 800),
    )
    common.schedule_1x(config)
    common.from_imagenet(config, "experiments/retinanet_coco.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

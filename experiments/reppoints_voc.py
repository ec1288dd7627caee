"""RepPoints-50 on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/reppoints_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: data and schedule are
those of `retinanet_voc`.  `:scratch` trains from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("reppoints")
    config.model = ConfigDict(
        dict(num_classes=20, depth=50, backbone_norm="stored", frozen_stages=1, dtype="float32")
    )
    common.voc_files(config)
    config.data.update(
        canvases=((608, 1024), (1024, 608)),
        size_limits=(1000, 600),
        max_boxes=64,
    )
    common.schedule_1x(config)
    config.optim.update(milestones=(9, 11))
    config.eval.update(best_by="mAP07")
    common.from_imagenet(config, "experiments/reppoints_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

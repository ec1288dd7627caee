"""RetinaNet-50 on PASCAL VOC 07+12, tested on 07 (mmdetection's `retinanet_r50_fpn_1x_voc0712`).

    python -m detlab.train --config experiments/retinanet_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference repeats the data three times in 4 epochs; here
that is 12 epochs.  `:scratch` trains from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("retinanet")
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
    common.from_imagenet(config, "experiments/retinanet_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""FCOS-50 in its improved form on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/fcos_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: the model is that of
`fcos_coco:improved` on torchvision's backbone, and the schedule is that of `retinanet_voc`.
`:scratch` trains from random weights.

Expected: VOC 07+12 | 12 epochs, not timed | 34 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import fcos

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base(
        "fcos",
        num_classes=20,
        style="pytorch",
        backbone_norm="stored",
        pixel_std=(58.395, 57.12, 57.375),
        **fcos.PUBLISHED,
    )
    common.voc_1x(config)
    config.optim.update(no_decay=(r"params/.*(?<!/norm)/bias",), warmup_factor=1 / 3)
    common.from_imagenet(config, "experiments/fcos_voc.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""FCOS-50 on COCO 2017, 1x schedule (mmdetection's `fcos_r50-caffe_fpn_gn-head_1x_coco`).

    python -m detlab.train --config experiments/fcos_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference publishes AP 38.7 for `:improved`,
its `..._gn-head-center-normbbox-centeronreg-giou`.  `:scratch` trains from random weights.  In the
reference, biases have twice the learning rate of weights, and the plain form warms up at a constant
third of the rate; here all parameters have one rate, which rises from a third.

Expected: COCO 2017 | 12 epochs, not timed | 57 GB for 16 images | AP 0.366, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import fcos

VARIANTS = ("improved", "scratch")


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("fcos")
    common.coco_1x(config)
    config.data.pad_value = (123, 116, 103)
    config.optim.update(
        no_decay=(r"params/.*(?<!/norm)/bias",), warmup_factor=1 / 3, clip_norm=35.0
    )
    file = "resnet50_caffe-788b5fa3.pth"  # Detectron's, with its own mean colour
    if variant == "improved":
        config.model.update(fcos.PUBLISHED)
        config.data.pad_value = common.MEAN_COLOUR
        config.optim.clip_norm = 0.0
        file = "resnet50_msra-5891d200.pth"  # Detectron2's
    name, folder = "experiments/fcos_coco.py", f"weights/{file.partition('-')[0]}"
    common.start_from(config, name, file, folder, source="torchvision --bgr", authors="OpenMMLab")
    if variant == "scratch":
        common.from_scratch(config)
    return config

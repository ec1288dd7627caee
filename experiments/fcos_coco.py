"""FCOS-50 on COCO 2017, 1x schedule (mmdetection's `fcos_r50-caffe_fpn_gn-head_1x_coco`).

    python -m detlab.train --config experiments/fcos_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The reference publishes AP 36.6, and 38.6 for
`:improved`, its `..._gn-head-center-normbbox-centeronreg-giou`.  `:scratch` trains from random
weights.  In the reference biases learn at twice the rate of weights, and the plain form warms up
at a constant third of it; here all learn at one rate, which rises from a third.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "improved", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there are 'improved' and 'scratch'.")
    config = common.base("fcos")
    config.model = ConfigDict(
        dict(num_classes=80, depth=50, backbone_norm="frozen", frozen_stages=1, dtype="float32")
    )
    common.coco_files(config)
    config.data.update(
        canvases=((800, 1344), (1344, 800)),
        size_limits=(1333, 800),
        pad_value=(123, 116, 103),
    )
    common.schedule_1x(config)
    config.optim.update(
        no_decay=(r"params/.*(?<!/norm)/bias",), warmup_factor=1 / 3, clip_norm=35.0
    )
    file = "resnet50_caffe-788b5fa3.pth"  # of Detectron; the mean colour belongs to it
    if variant == "improved":
        config.model.update(
            center_radius=1.5,
            distances_in_strides=True,
            centerness_on_box=True,
            box_loss="giou",
            conv_bias=True,
            nms_iou=0.6,
            pixel_mean=(123.675, 116.28, 103.53),
        )
        config.data.pad_value = common.MEAN_COLOUR
        config.optim.clip_norm = 0.0
        file = "resnet50_msra-5891d200.pth"  # of Detectron2
    folder = f"weights/{file.partition('-')[0]}"
    config.init_from = folder
    config.init_skip = ("params/(neck|head|box_scales)/.*",)
    config.init_help = (
        f"download OpenMMLab's {file}, convert it with `python -m converters.convert --source"
        f" torchvision --bgr --config experiments/fcos_coco.py --input {file} --output {folder}`,"
        " or train from random weights with `--config experiments/fcos_coco.py:scratch`"
    )
    if variant == "scratch":
        common.from_scratch(config)
    return config

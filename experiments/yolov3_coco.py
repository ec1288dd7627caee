"""YOLOv3 on COCO 2017 (mmdetection's `yolov3_d53_8xb8-ms-608-273e_coco`).

    python -m detlab.train --config experiments/yolov3_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  Images of 320 to 608 px, tested at 608; the
reference publishes AP 33.4.  `:416` trains on 320 to 416 px and tests at 416 (AP 30.9), `:320` does
both at 320 (AP 27.9), `:scratch` starts from random weights.
"""

from ml_collections import ConfigDict

from experiments import common

SIDES = {"": 608, "416": 416, "320": 320, "scratch": 608}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in SIDES:
        raise ValueError(f"variant {variant!r} is unknown; there are '416', '320' and 'scratch'.")
    config = common.base("yolov3")
    config.model = ConfigDict(dict(num_classes=80, backbone_norm="stored", dtype="float32"))
    side = SIDES[variant]
    config.data.update(
        source="coco",
        root="data/coco",
        train_images="train2017",
        train_annotations="annotations/instances_train2017.json",
        eval_images="val2017",
        eval_annotations="annotations/instances_val2017.json",
        canvases=((side, side),),
        pad_value=(0, 0, 0),
    )
    if side > 320:
        config.data.update(multiscale_limits=((320, 320), (side, side)), multiscale="range")
    config.data.augment.update(
        photometric=1.0,
        expand=0.5,
        expand_ratio=2.0,
        crop="min_iou",
        crop_min_ious=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
    config.train.update(batch_size=64, epochs=273)
    config.optim.update(
        lr=0.001,
        lr_batch_size=64,
        weight_decay=5e-4,
        clip_norm=35.0,
        milestones=(218, 246),
        warmup_steps=2000,
        warmup_factor=0.1,
    )
    if variant == "scratch":
        config.model.backbone_norm = "batch"
        return config
    config.init_from = "weights/darknet53_mmdet"
    config.init_skip = (r"\w+/(neck|head)/.*",)
    config.init_help = (
        "download mmdetection's darknet53-a628ea1b.pth, convert it with `python -m"
        " converters.convert --source mmdet --config experiments/yolov3_coco.py --input"
        f" darknet53-a628ea1b.pth --output {config.init_from}`, or train from random weights with"
        " `--config experiments/yolov3_coco.py:scratch`"
    )
    return config

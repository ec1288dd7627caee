"""YOLOv3 on PASCAL VOC 07+12, tested on 07, at 416 px.

    python -m detlab.train --config experiments/yolov3_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  Losses, data and optimizer are those of yolov3_coco.py, which
has a published figure; this one has none.  150 epochs show about as many images as 21 of COCO.
`:scratch` starts from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("yolov3")
    config.model = ConfigDict(dict(num_classes=20, backbone_norm="stored", dtype="float32"))
    config.data.update(
        source="voc",
        root="data/VOCdevkit",
        train_splits=("2007_trainval", "2012_trainval"),
        eval_splits=("2007_test",),
        canvases=((416, 416),),
        multiscale_limits=((320, 320), (416, 416)),
        multiscale="range",
        pad_value=(0, 0, 0),
        max_boxes=64,
    )
    config.data.augment.update(
        photometric=1.0,
        expand=0.5,
        expand_ratio=2.0,
        crop="min_iou",
        crop_min_ious=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
    config.train.update(batch_size=64, epochs=150)
    config.optim.update(
        lr=0.001,
        lr_batch_size=64,
        weight_decay=5e-4,
        clip_norm=35.0,
        milestones=(120, 135),
        warmup_steps=1000,
        warmup_factor=0.1,
    )
    config.eval.update(best_by="mAP07")
    if variant == "scratch":
        config.model.backbone_norm = "batch"
        return config
    config.init_from = "weights/darknet53_mmdet"
    config.init_skip = (r"\w+/(neck|head)/.*",)
    config.init_help = (
        "download mmdetection's darknet53-a628ea1b.pth, convert it with `python -m"
        " converters.convert --source mmdet --config experiments/yolov3_voc.py --input"
        f" darknet53-a628ea1b.pth --output {config.init_from}`, or train from random weights with"
        " `--config experiments/yolov3_voc.py:scratch`"
    )
    return config

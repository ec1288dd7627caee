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
    common.voc_files(config)
    config.data.update(
        canvases=((416, 416),),
        multiscale_limits=((320, 320), (416, 416)),
        multiscale="range",
        pad_value=(0, 0, 0),
        max_boxes=64,
    )
    common.yolov3_training(config, epochs=150, milestones=(120, 135), warmup_steps=1000)
    config.eval.update(best_by="mAP07")
    if variant == "scratch":
        config.model.backbone_norm = "batch"
        return config
    common.from_darknet53(config, "experiments/yolov3_voc.py")
    return config

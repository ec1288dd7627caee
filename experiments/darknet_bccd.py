r"""A darknet network on BCCD, 364 microscope images of blood cells, from weights or from scratch.

    python -m converters.convert --config experiments/darknet_bccd.py \
        --input yolo-fastest-1.1.weights --cfg yolo-fastest-1.1.cfg --reset_classes \
        --output weights/yolo_fastest
    python -m detlab.train --config experiments/darknet_bccd.py:yolo-fastest-1.1.cfg \
        --config.data.root=BCCD --config.init_from=weights/yolo_fastest

The variant is the path of a cfg or the name of a standard network (default: tiny YOLOv4).  Without
--config.init_from, training starts from random weights with the same settings; docs/performance.md
compares both.

Expected: BCCD | 15 epochs, not timed | 0.6 GB for 8 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

STANDARD = {"": "yolov4-tiny", "yolov3_tiny": "yolov3-tiny", "yolov4_tiny": "yolov4-tiny"}


def get_config(variant: str = "") -> ConfigDict:
    cfg = STANDARD.get(variant) or read(variant)
    config = common.base("darknet", cfg=cfg, num_classes=3)
    common.bccd_files(config)
    config.data.update(
        canvases=((320, 320),),
        resize="stretch",
        rounding="whole",
        demo_rounding="whole",
        pad_value=(128, 128, 128),
    )
    config.train.update(batch_size=8, epochs=15, log_every=10, eval_every=185)
    config.optim.update(
        name="adamw",
        lr=1e-3,
        lr_batch_size=8,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_steps=50,
        warmup_factor=0.01,
        clip_norm=35.0,
    )
    return config


def read(path: str) -> str:
    """The text of a cfg."""
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        known = ", ".join(f"'{name}'" for name in STANDARD if name)
        raise ValueError(
            f"variant {path!r} is unknown ({error.strerror}); use {known} or the path of a cfg."
        ) from error

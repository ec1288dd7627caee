"""Tiny YOLOv4 with a quarter of its channels on generated shapes: darknet's training on a laptop.

    python -m detlab.train --config experiments/darknet_shapes.py

Data, optimizer and schedule are those of `yolov3_shapes`.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("darknet")
    config.model = ConfigDict(dict(cfg="yolov4-tiny", num_classes=4, width_multiple=0.25))
    config.data.update(source="shapes", canvases=((128, 128),), pad_value=(0, 0, 0), max_boxes=8)
    config.train.update(
        batch_size=8, steps=1100, log_every=10, eval_every=275, checkpoint_every=100
    )
    config.optim.update(
        name="adamw",
        lr=1.5e-3,
        lr_batch_size=8,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=50,
        warmup_factor=0.01,
        clip_norm=35.0,
    )
    return config

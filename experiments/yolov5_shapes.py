"""YOLOv5n on generated shapes: a network of release 7.0 on a laptop.

    python -m detlab.train --config experiments/yolov5_shapes.py

Data, optimizer and schedule are those of `yolov3_shapes`.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("yolov5")
    config.model = ConfigDict(
        dict(
            num_classes=4,
            width_multiple=0.25,
            # The middles of thirds of 16 to 70 px, of each side.
            anchor_sizes=(
                ((25, 25), (25, 43), (43, 25)),
                ((25, 61), (43, 43), (61, 25)),
                ((43, 61), (61, 43), (61, 61)),
            ),
            train_size=128,
        )
    )
    config.data.update(source="shapes", canvases=((128, 128),), pad_value=(114, 114, 114))
    config.data.max_boxes = 8
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
        clip_norm=100.0,
    )
    return config

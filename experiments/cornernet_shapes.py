"""A small CornerNet on generated shapes: boxes from pairs of corners on a laptop.

python -m detlab.train --config experiments/cornernet_shapes.py
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("cornernet")
    config.model = ConfigDict(
        dict(
            num_classes=4,
            stacks=1,
            channels=(48, 48, 64, 96),
            blocks=(1, 1, 1, 1),
            pool_width=32,
            head_width=48,
        )
    )
    config.data.update(source="shapes", canvases=((128, 128),), max_boxes=8)
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

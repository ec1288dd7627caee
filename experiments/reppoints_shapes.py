"""RepPoints-18 on generated shapes, with 64 channels: for a laptop.

    python -m detlab.train --config experiments/reppoints_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("reppoints")
    common.small_from_scratch(config, num_classes=4, warmup_steps=50)
    config.model = ConfigDict(
        dict(
            num_classes=4,
            depth=18,
            neck_width=64,
            head_width=64,
            head_convs=2,
            point_width=64,
        )
    )
    common.from_scratch(config)
    config.data.update(source="shapes", canvases=((128, 128),), max_boxes=8)
    config.train.update(steps=1100, log_every=10, eval_every=275, checkpoint_every=100)
    config.eval.update(batch_size=8)
    return config

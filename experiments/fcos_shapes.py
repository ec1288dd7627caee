"""FCOS-18 in its improved form on generated shapes, with 64 channels: for a laptop.

    python -m detlab.train --config experiments/fcos_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("fcos")
    common.small_from_scratch(config, num_classes=4, warmup_steps=50)
    config.model = ConfigDict(
        dict(
            num_classes=4,
            depth=18,
            neck_width=64,
            head_width=64,
            head_convs=2,
            level_limits=(32.0, 64.0, 128.0, 256.0),  # half the paper's: objects from 16 px
            center_radius=1.5,
            distances_in_strides=True,
            centerness_on_box=True,
            box_loss="giou",
            nms_iou=0.6,
            pixel_mean=(123.675, 116.28, 103.53),
            pixel_std=(58.395, 57.12, 57.375),
        )
    )
    common.from_scratch(config)
    config.data.update(source="shapes", canvases=((128, 128),), max_boxes=8)
    config.train.update(steps=1100, log_every=10, eval_every=275, checkpoint_every=100)
    config.eval.update(batch_size=8)
    return config

"""A small Faster R-CNN on generated shapes: two stages on a laptop.

    python -m detlab.train --config experiments/faster_rcnn_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("faster_rcnn")
    common.small_from_scratch(config, num_classes=4, warmup_steps=50)
    config.model = ConfigDict(
        dict(
            num_classes=4,
            depth=18,
            neck_width=64,
            rpn_width=64,
            strides=(4, 8, 16, 32),
            anchor_scale=6.0,  # 24 to 192 px: objects have 16 px and more
            rpn_samples=64,
            train_proposals_per_level=300,
            train_proposals=100,
            proposals_per_level=200,
            proposals=100,
            box_width=256,
            roi_scale=28.0,  # half the paper's, as the objects are small
            box_samples=64,
        )
    )
    common.from_scratch(config)
    config.data.update(source="shapes", canvases=((128, 128),), max_boxes=8)
    config.train.update(steps=1100, log_every=10, eval_every=275, checkpoint_every=100)
    config.eval.update(batch_size=8)
    return config

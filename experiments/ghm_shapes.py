"""RetinaNet-18 with GHM on generated shapes, with 64 channels: for a laptop.

    python -m detlab.train --config experiments/ghm_shapes.py

Data, optimizer and schedule are those of `retinanet_shapes`.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("ghm")
    common.small_from_scratch(config, num_classes=4, warmup_steps=50)
    # mu is for deltas without stds, and GHM-R balances its term itself.
    config.model.update(delta_stds=(1.0, 1.0, 1.0, 1.0), box_weight=10.0)
    config.data.update(source="shapes", canvases=((128, 128),), max_boxes=8)
    config.train.update(steps=1100, log_every=10, eval_every=275, checkpoint_every=100)
    config.eval.update(batch_size=8)
    return config

"""RetinaNet-18 on BCCD, 364 microscope images of blood cells in VOC layout, from scratch.

    python -m detlab.train --config experiments/retinanet_bccd.py --config.data.root=BCCD

The root holds Annotations, ImageSets and JPEGImages.  Images of 640x480 px are halved.  AP50 on the
72 images of the test split is 0.89.

Expected: BCCD | about 45 minutes on 2 CPU cores | 0.7 GB for 8 images | AP 0.561, seed 0
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import small


def get_config() -> ConfigDict:
    config = common.base(
        "retinanet",
        num_classes=3,
        **small.dense() | dict(backbone_width=64, head_convs=2),
        octave_base_scale=3.0,  # anchors from 24 px, for objects from 16 px
        delta_stds=(0.1, 0.1, 0.2, 0.2),
        box_weight=0.25,  # small stds make the box term large
    )
    common.bccd_files(config)
    small.optimizer(config, warmup_steps=100)
    config.data.canvases = ((240, 320),)
    config.train.update(epochs=40, log_every=10, eval_every=185)
    return config

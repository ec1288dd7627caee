"""CornerNet with Hourglass-104 on COCO 2017 (mmdetection's `cornernet_hourglass104_8xb6-210e`).

    python -m detlab.train --config experiments/cornernet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  As in the reference, training starts from random
weights and takes 48 images per step.  The reference tests images at their original size; so does
this config if the longer side is 640 px and the other at most 511, as in most images of COCO.

Expected: COCO 2017 | 210 epochs, not timed | 253 GB for 48 images | AP 0.412, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import corner


def get_config() -> ConfigDict:
    config = common.base("cornernet")
    corner.coco(config, batch_size=48, milestone=180)
    return config

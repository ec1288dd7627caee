"""CornerNet with Hourglass-104 on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/cornernet_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: the model and its
schedule, in epochs, are those of `cornernet_coco`.  Images, at most 500 px long, are tested at
their original size.

Expected: VOC 07+12 | 210 epochs, not timed | 247 GB for 48 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import corner


def get_config() -> ConfigDict:
    config = common.base("cornernet", num_classes=20)
    corner.voc(config, batch_size=48, milestone=180)
    return config

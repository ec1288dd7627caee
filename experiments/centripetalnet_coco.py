"""CentripetalNet with Hourglass-104 on COCO 2017.

    python -m detlab.train --config experiments/centripetalnet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The schedule is that of mmdetection's
`centripetalnet_hourglass104_16xb6-crop511-210e-mstest`: training starts from random weights and
takes 96 images per step.  Images are tested as in `cornernet_coco`.

Expected: COCO 2017 | 210 epochs, not timed | 536 GB for 96 images | AP 0.448, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import corner


def get_config() -> ConfigDict:
    config = common.base("centripetalnet")
    corner.coco(config, batch_size=96, milestone=190)
    return config

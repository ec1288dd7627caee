"""CentripetalNet with Hourglass-104 on PASCAL VOC 07+12, tested on 07.

    python -m detlab.train --config experiments/centripetalnet_voc.py --config.data.root=VOCdevkit

The root holds VOC2007 and VOC2012.  The reference has no such configuration: the model and its
schedule, in epochs, are those of `centripetalnet_coco`.  Images, at most 500 px long, are tested at
their original size.

Expected: VOC 07+12 | 210 epochs, not timed | 532 GB for 96 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common


def get_config() -> ConfigDict:
    config = common.base("centripetalnet", num_classes=20)
    common.voc_files(config)
    config.data.update(
        canvases=((511, 511),),
        size_limits=(500, 500),
        multiscale_limits=((511, 511),),  # for training: the crop fills the canvas
    )
    config.data.augment.update(photometric=1.0, crop="center")
    config.train.update(batch_size=96, epochs=210)
    config.optim.update(
        name="adamw",
        lr=5e-4,
        lr_batch_size=96,
        weight_decay=0.0,
        clip_norm=35.0,
        milestones=(190,),
        warmup_steps=500,
        warmup_factor=1 / 3,
    )
    config.eval.views = ("image", "mirror")
    return config

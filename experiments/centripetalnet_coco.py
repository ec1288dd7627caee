"""CentripetalNet with Hourglass-104 on COCO 2017.

    python -m detlab.train --config experiments/centripetalnet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  The schedule is that of mmdetection's
`centripetalnet_hourglass104_16xb6-crop511-210e-mstest`: training starts from random weights and
takes 96 images per step.  Images are tested as in `cornernet_coco`.

Expected: COCO 2017 | 210 epochs, not timed | 536 GB for 96 images | AP 0.448, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common


def get_config() -> ConfigDict:
    config = common.base("centripetalnet")
    common.coco_files(config)
    config.data.update(
        # Training crops are 511 x 511 px.  As in the reference, the sides of test canvases have
        # their last seven bits set, so all halvings after the first are exact.
        canvases=((511, 767), (767, 511)),
        multiscale_canvases=(((511, 511), (511, 511)),),
        size_limits=(640, 640),
        max_boxes=128,
    )
    config.data.augment.update(photometric=1.0, crop="center")
    config.train.update(batch_size=96, epochs=210)
    config.optim.update(
        name="adamw",
        lr=5e-4,
        lr_batch_size=96,
        weight_decay=0.0,  # plain Adam
        clip_norm=35.0,
        milestones=(190,),
        warmup_steps=500,
        warmup_factor=1 / 3,
    )
    config.eval.views = ("image", "mirror")
    return config

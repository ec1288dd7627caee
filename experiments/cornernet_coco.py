"""CornerNet with Hourglass-104 on COCO 2017 (mmdetection's `cornernet_hourglass104_8xb6-210e`).

    python -m detlab.train --config experiments/cornernet_coco.py --config.data.root=coco

The root holds train2017, val2017 and annotations.  As in the reference, training starts from random
weights and takes 48 images per step.  The reference tests images at their original size; so does
this config if the longer side is 640 px and the other at most 511, as in most images of COCO.

Expected: COCO 2017 | 210 epochs, not timed | 253 GB for 48 images | AP 0.412, published
"""

from ml_collections import ConfigDict

from detlab.experiments import common


def get_config() -> ConfigDict:
    config = common.base("cornernet")
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
    config.train.update(batch_size=48, epochs=210)
    config.optim.update(
        name="adamw",
        lr=5e-4,
        lr_batch_size=48,
        weight_decay=0.0,  # plain Adam
        clip_norm=35.0,
        milestones=(180,),
        warmup_steps=500,
        warmup_factor=1 / 3,
    )
    config.eval.views = ("image", "mirror")
    return config

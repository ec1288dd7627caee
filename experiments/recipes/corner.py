"""How mmdetection trains CornerNet and CentripetalNet: from random weights, on crops of 511 px."""

from ml_collections import ConfigDict

from detlab.experiments import common

# Fields of the variants of the experiments on shapes.
ON_SHAPES = {
    "": dict(
        stacks=1, channels=(48, 48, 64, 96), blocks=(1, 1, 1, 1), pool_width=32, head_width=48
    ),
    "overfit": dict(
        stacks=1, channels=(32, 32, 48, 64), blocks=(1, 1, 1, 1), pool_width=24, head_width=32
    ),
    "tiny": dict(
        channels=(16, 16, 24),
        blocks=(1, 1, 1),
        pool_width=8,
        head_width=16,
        max_corners=20,
        num_candidates=50,
        max_detections=20,
    ),
}


def coco(config: ConfigDict, batch_size: int, milestone: int) -> None:
    """Sets data and schedule for COCO."""
    common.coco_files(config)
    config.data.update(
        # Training crops are 511 x 511 px.  As in the reference, the sides of test canvases have
        # their last seven bits set, so all halvings after the first are exact.
        canvases=((511, 767), (767, 511)),
        multiscale_canvases=(((511, 511), (511, 511)),),
        size_limits=(640, 640),
        max_boxes=128,
    )
    _training(config, batch_size, milestone)


def voc(config: ConfigDict, batch_size: int, milestone: int) -> None:
    """Sets data and schedule for PASCAL VOC."""
    common.voc_files(config)
    config.data.update(
        canvases=((511, 511),),
        size_limits=(500, 500),
        multiscale_limits=((511, 511),),  # for training: the crop fills the canvas
    )
    _training(config, batch_size, milestone)


def _training(config: ConfigDict, batch_size: int, milestone: int) -> None:
    config.data.augment.update(photometric=1.0, crop="center")
    config.train.update(batch_size=batch_size, epochs=210)
    config.optim.update(
        name="adamw",
        lr=5e-4,
        lr_batch_size=batch_size,
        weight_decay=0.0,  # plain Adam
        clip_norm=35.0,
        milestones=(milestone,),
        warmup_steps=500,
        warmup_factor=1 / 3,
    )
    config.eval.views = ("image", "mirror")

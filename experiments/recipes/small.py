"""Small detectors that train on a CPU from random weights, on generated shapes or few images."""

from ml_collections import ConfigDict

# Fields of the forms of a RetinaNet whose box loss compares deltas.
RETINANET = {
    "": dict(
        strides=(8, 16, 32),  # objects have at most 70 px
        octave_base_scale=4.0,  # anchors from 32 px, so that most objects are on the finest level
        delta_stds=(0.1, 0.1, 0.2, 0.2),
        box_weight=0.25,  # small stds make the box term large
    ),
    "overfit": dict(octave_base_scale=2.5),
    "tiny": dict(octave_base_scale=3.0),
}


def optimizer(
    config: ConfigDict, lr: float = 1.5e-3, warmup_steps: int = 50, clip_norm: float = 10.0
) -> None:
    """AdamW for a small network from random weights, on a CPU or on few images."""
    config.train.batch_size = 8
    config.optim.update(
        name="adamw",
        lr=lr,
        lr_batch_size=8,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=warmup_steps,
        warmup_factor=0.01,
        clip_norm=clip_norm,
    )


def shapes(
    config: ConfigDict,
    variant: str,
    clip_norm: float = 10.0,
    overfit_steps: int = 300,
    overfit_side: int = 96,
) -> None:
    """Data and training of the three forms that every <detector>_shapes has.

    - "" and all others: 1200 steps on generated shapes of 128 px, a few minutes on a laptop;
    - "overfit", or "overfit_NETWORK": overfits eight images, which benchmarks.overfit writes to
      `data.root`, on a canvas of `overfit_side` px;
    - "tiny": for tests, with three classes.
    """
    form = variant.partition("_")[0]
    if form == "tiny":
        config.model.num_classes = 3
        config.data.canvases = ((64, 96),)
    elif form == "overfit":
        _eight_pictures(config, overfit_steps, overfit_side)
    else:
        config.model.num_classes = 4
        config.data.update(source="shapes", canvases=((128, 128),), max_boxes=8)
        config.train.update(steps=1200, log_every=10, eval_every=300, checkpoint_every=100)
        optimizer(config, lr=2e-3, warmup_steps=200, clip_norm=clip_norm)


def _eight_pictures(config: ConfigDict, steps: int, side: int) -> None:
    """The data of benchmarks.overfit: eight images with objects of 12 to 52 px."""
    config.model.num_classes = 4
    config.data.update(
        source="coco",
        train_images="images",
        train_annotations="boxes.json",
        eval_images="images",
        eval_annotations="boxes.json",
        canvases=((side, side),),
        flip_horizontal=0.0,
        max_boxes=8,
    )
    config.train.update(
        batch_size=8, steps=steps, log_every=10, eval_every=steps // 10, checkpoint_every=steps
    )
    config.optim.update(
        name="adamw",
        lr=2e-3,
        lr_batch_size=0,
        schedule="cosine",
        warmup_steps=20,
        warmup_factor=0.01,
        clip_norm=35.0,
    )
    config.eval.update(batch_size=8, best_by="AP50", pictures=0)


def resnet(variant: str = "") -> dict:
    """Fields of a ResNet-18 with FPN, from random weights, for a form of `shapes`."""
    one_each = dict(backbone_stages=(1, 1, 1, 1))
    widths = {
        "": dict(backbone_width=32, neck_width=64),
        "overfit": dict(backbone_width=16, **one_each, neck_width=48),
        "tiny": dict(backbone_width=8, **one_each, neck_width=16),
    }
    return dict(depth=18, backbone_norm="batch", frozen_stages=0, **widths[variant])


def dense(variant: str = "") -> dict:
    """The fields of `resnet` and of the towers of a dense head."""
    fields = resnet(variant)
    convs = 2 if variant == "overfit" else 1
    return dict(**fields, head_width=fields["neck_width"], head_convs=convs)


def two_stages(variant: str = "") -> dict:
    """The fields of `resnet`, of a region proposal network and of a box head."""
    stages = {
        "": dict(
            rpn_width=64,
            anchor_scale=6.0,  # 24 to 192 px: objects have at least 16 px
            rpn_samples=64,
            train_proposals_per_level=300,
            train_proposals=100,
            proposals_per_level=200,
            proposals=100,
            box_width=256,
            roi_scale=28.0,  # half the paper's, as the objects are small
            box_samples=64,
        ),
        "overfit": dict(
            rpn_width=48,
            anchor_scale=4.5,
            rpn_samples=64,
            train_proposals_per_level=200,
            train_proposals=64,
            proposals_per_level=100,
            proposals=64,
            box_width=128,
            roi_scale=21.0,
            box_samples=64,
        ),
        "tiny": dict(
            rpn_width=16,
            anchor_scale=6.0,
            rpn_samples=32,
            train_proposals_per_level=60,
            train_proposals=40,
            proposals_per_level=40,
            proposals=30,
            box_width=16,
            roi_scale=28.0,
            box_samples=24,
        ),
    }
    return dict(**resnet(variant), strides=(4, 8, 16, 32), **stages[variant])


def anchors(a: int, b: int, c: int) -> tuple:
    """Anchors of three levels; each width and height is one of three side lengths, px."""
    return ((a, a), (a, b), (b, a)), ((a, c), (b, b), (c, a)), ((b, c), (c, b), (c, c))


def ssd(variant: str = "") -> dict:
    """Fields of an SSD with four levels, from random weights, for a form of `shapes` or a size."""
    common = dict(pixel_std=(58.395, 57.12, 57.375))
    if variant == "tiny":
        return common | dict(
            backbone_convs=(1, 1, 1, 1, 1),
            backbone_width=4,
            fc_width=16,
            extra_layers=((16, 3, 2, 1), (8, 2, 1, 0)),  # the last one does not pad
            input_size=64,
            side_percents=(25, 40, 55, 75, 100),
            level_ratios=((2,), (2, 3), (2, 3), (2, 3)),  # as in the first levels of SSD300
        )
    overfit = variant == "overfit"  # objects have 12 to 52 of 96 px, else 16 to 70 of 128
    return common | dict(
        norm="batch",
        backbone_convs=(1, 1, 2, 2, 2),
        backbone_width=16,
        fc_width=128,
        extra_layers=((128, 3, 2, 1), (96, 3, 2, 1)),
        input_size=96 if overfit else int(variant or 128),
        side_percents=(15, 23, 36, 50, 70) if overfit else (15, 25, 38, 54, 75),
        level_ratios=((2,),) * 4,
    )

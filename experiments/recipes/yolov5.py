"""YOLOv5's networks of all releases, and how their authors train them."""

from ml_collections import ConfigDict

SIZES = {  # multiples of depth and width
    "n": (0.33, 0.25),
    "s": (0.33, 0.5),
    "m": (0.67, 0.75),
    "l": (1.0, 1.0),
    "x": (1.33, 1.25),
}
VARIANTS = (
    *SIZES,
    *(f"{size}6" for size in SIZES),
    *(f"{size}{form}" for size in "smlx" for form in ("_v5", "6_v5", "_v3")),
)
_FOUR_LEVELS = dict(
    anchor_sizes=(
        ((19, 27), (44, 40), (38, 94)),
        ((96, 68), (86, 152), (180, 137)),
        ((140, 301), (303, 264), (238, 542)),
        ((436, 615), (739, 380), (925, 792)),
    ),
    level_balance=(4.0, 1.0, 0.25, 0.06),
)


def network(config: ConfigDict, variant: str) -> None:
    """The network of a variant: "s" of releases 6.0 to 7.0, "s_v5" of 4.0 and 5.0, "s_v3" of 3.0.

    "s6" has four levels of detection, for images of 1280 px.
    """
    size, _, release = variant.partition("_")
    depth, width = SIZES[size[0]]
    config.model.update(depth_multiple=depth, width_multiple=width)
    if release:
        config.model.update(stem="focus", pool="spp", repeats=(3, 9, 9, 3))
    if release == "v3":
        config.model.update(block="csp", activation="hard_swish")
    if size.endswith("6"):
        last = (3, 9, 9, 3, 3) if release else (3, 6, 9, 3, 3)
        pool = dict(pool_size=3) if release else {}
        config.model.update(repeats=last, **pool, **_FOUR_LEVELS)


def training(config: ConfigDict, variant: str, side: int, warmup_steps: int) -> None:
    """How the reference trains such a network on images of `side` px, without copy-paste.

    Releases 6.0 to 7.0 train n and s with `hyp.scratch-low` and the others with `-high`; earlier
    releases have one set for all.  The loss is scaled as for 64 images, whatever the batch size.
    `warmup_steps` is the length of three epochs.
    """
    config.model.update(train_size=side)
    config.data.update(
        canvases=((side, side),),
        resize="letterbox",
        # All releases from 1.0 to 7.0: int() in train.py and val.py, round() in detect.py.
        rounding="down",
        demo_rounding="half_even",
        eval_shrink="area",
        pad_value=(114, 114, 114),
        keep_empty=True,
        min_side=0,
        max_boxes=200,
    )
    # val.py and train.py evaluate, and detect.py detects, on the smallest letterbox of a picture.
    stride = 64 if "6" in variant else 32
    config.eval.rectangles = stride
    # detect.py of release 3.0 has 64 in any network.
    config.predict.update(
        threshold=0.25, top_k=1000, rectangles=64 if variant.endswith("_v3") else stride
    )
    config.predict.model.update(nms_iou=0.45, multi_label=False, max_detections=1000)
    config.data.augment.update(mosaic=1.0, affine=1.0, hsv=1.0)
    config.train.update(batch_size=64, epochs=300)
    config.optim.update(
        name="sgd",
        lr=0.01,
        lr_batch_size=0,
        momentum=0.937,
        nesterov=True,
        weight_decay=5e-4,
        no_decay=("params/.*/norm/.*", "params/.*/bias"),
        clip_norm=10.0,
        schedule="linear",
        final_factor=0.01,
        decay_from="start",
        warmup_steps=warmup_steps,
        warmup_factor=0.0,
        warmup_momentum=0.8,
        warmup_bias_lr=0.1,
        ema_decay=0.9999,
        ema_warmup=2000,
    )
    if variant.endswith(("_v3", "_v5")):
        config.model.train_size = 640 if variant.endswith("_v3") else side
        config.optim.update(clip_norm=0.0, schedule="cosine", final_factor=0.2)
        if variant.endswith("_v3"):
            config.optim.warmup_momentum = 0.9
    elif variant[0] not in "ns":
        config.model.update(class_gain=0.3, objectness_gain=0.7)
        config.data.augment.update(affine_scale=0.9, mixup=0.1)
        config.optim.final_factor = 0.1

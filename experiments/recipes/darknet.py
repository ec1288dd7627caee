"""How darknet trains its standard networks."""

from ml_collections import ConfigDict

NETWORKS = {  # by variant of the experiments
    "": "yolov4",
    "yolov3": "yolov3",
    "yolov3_tiny": "yolov3-tiny",
    "yolov4": "yolov4",
    "yolov4_tiny": "yolov4-tiny",
}


def training(config: ConfigDict, network: str) -> None:
    """How darknet trains a standard network: [net] and the data keys of [yolo] in its cfg.

    `max_batches` and `steps` count batches of 64, which are processed in parts (`subdivisions`);
    the learning rate burns in with the fourth power.  With `random=1` sizes are darknet's: 1/1.4 to
    1.4 times the cfg's, in steps of 32 px.  Differences: darknet keeps a size for ten batches, here
    each step draws one.  Half of its batches are mosaics, here half of the images.  The area that
    `jitter` adds around an image is grey, not the image's mean.  `resize=1.5` of tiny YOLOv4 is not
    implemented.
    """
    side, sides, parts, lr, steps, milestones = {
        "yolov3": (608, (480, 896), 16, 0.001, 500200, (400000, 450000)),
        "yolov3-tiny": (416, (320, 608), 2, 0.001, 500200, (400000, 450000)),
        "yolov4": (608, (480, 896), 8, 0.0013, 500500, (400000, 450000)),
        "yolov4-tiny": (416, (416, 416), 1, 0.00261, 2000200, (1600000, 1800000)),
    }[network]
    config.data.update(
        canvases=((side, side),),
        resize="stretch",
        rounding="whole",  # matters only if `resize` is changed to letterbox
        demo_rounding="whole",
        eval_shrink="corners",
        pad_value=(128, 128, 128),
        max_boxes=200,
        keep_empty=True,
        min_side=0,
    )
    # `detector test`; evaluation has the threshold of `detector map`, see `detectors.darknet`.
    config.predict.update(threshold=0.25, top_k=1000, shrink="corners")
    config.predict.model.max_detections = 1000
    if sides[0] < sides[1]:
        drawn = range(sides[0], sides[1] + 1, 32)
        config.data.multiscale_canvases = tuple(((s, s),) for s in drawn)
    config.data.augment.update(
        crop="jitter",
        crop_jitter=0.3,
        mosaic=0.5 if network == "yolov4" else 0.0,
        hsv=1.0,
        hsv_gains=(0.1, 1.5, 1.5),
        hsv_form="darknet",
    )
    config.train.update(batch_size=64, accumulate=parts, steps=steps, epochs=0)
    config.optim.update(
        name="sgd",
        lr=lr,
        lr_batch_size=64,
        momentum=0.949 if network == "yolov4" else 0.9,
        weight_decay=5e-4,
        no_decay=(r"params/.*/norm/.*", r"params/.*/bias"),
        milestones=milestones,
        warmup_steps=1000,
        warmup_factor=0.0,
        warmup_power=4.0,
    )

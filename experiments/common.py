"""The blocks that every experiment fills in, with every key that a command line may override."""

from ml_collections import ConfigDict

# ImageNet's mean colour, about 0 after normalisation: what surrounds an image on its canvas.
MEAN_COLOUR = (124, 116, 104)


def base(detector: str) -> ConfigDict:
    """All keys with neutral values, locked: a key that is not here is refused.

    `model` alone is open, as its fields are the detector's.
    """
    config = ConfigDict(
        dict(
            detector=detector,
            model=dict(),
            seed=0,
            # Start from weights: a workdir, a checkpoint's folder or what converters.convert wrote.
            init_from="",
            init_skip=(),  # regexes of paths, such as params/head/.*, that may differ
            init_help="",  # what to do where init_from is missing
            compilation_cache=True,  # keep compiled programs in the user's cache folder
            data=dict(
                source="shapes",  # shapes, voc, coco, wider or tfds
                root="data",
                class_names=(),  # () for those of the source
                rename_classes=(),  # pairs (name in the files, name in class_names)
                tfds_name="",  # tfds: "voc/2007"; root is the folder of prepared data sets
                train_splits=(),  # voc: "2007_trainval", or "train" in a folder without years
                eval_splits=(),  # wider, tfds: "train", "val" ...
                train_images="",  # coco: folder below root
                train_annotations="",  # coco: json below root
                eval_images="",
                eval_annotations="",
                train_also=(),  # more data: a dict a source, of the keys here that differ
                train_repeat=1,  # times that an epoch shows the training data
                keep_empty=False,  # train on images without objects too
                canvases=((128, 128),),  # (height, width) px; each compiles once
                resize="fit",  # fit (keeps the ratio), letterbox (fit, centred) or stretch
                size_limits=(),  # (long, short) px that the sides may not exceed; () for none
                # Of sides that keep their ratio: half_up (mmcv), half_even, down, up or whole ...
                rounding="half_up",
                demo_rounding="half_up",  # ... and of those in the demo, see docs/data.md
                eval_shrink="linear",  # how evaluation makes pictures smaller: linear or area
                # Multi-scale training: alternatives to `canvases`, of which a step draws one ...
                multiscale_canvases=(),  # (((320, 320),), ((416, 416),))
                # ... and alternatives to `size_limits`, of which an image draws one.
                multiscale_limits=(),  # ((1333, 640), (1333, 800))
                multiscale="list",  # list: one of the limits; range: any from least to largest
                flip_horizontal=0.5,  # probabilities
                flip_vertical=0.0,
                augment=dict(  # in this order; the resizing after the crop, flips before cutout
                    photometric=0.0,  # probability of SSD's distortion of colours
                    brightness=32.0,  # at most, of 255
                    contrast=0.5,  # factor 1 - 0.5 .. 1 + 0.5
                    saturation=0.5,
                    hue=18.0,  # degrees
                    expand=0.0,  # probability of a larger, mean-coloured picture around the image
                    expand_ratio=4.0,  # at most
                    crop="none",  # random, min_iou (SSD), center (CornerNet) or jitter (darknet)
                    crop_probability=1.0,  # of random
                    crop_size=(0.3, 1.0),  # sides of the crop, least and largest part of the image
                    crop_min_ious=(0.1, 0.3, 0.5, 0.7, 0.9),  # min_iou draws one, or no condition
                    crop_side=511,  # px of a square around a point; of center
                    crop_scales=(0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),  # of which one is drawn
                    crop_border=128,  # px that the point keeps from the edges, less in small images
                    crop_jitter=0.3,  # each side moves out or in by at most this part; of jitter
                    mosaic=0.0,  # probability of four pictures around a point in the place of one
                    mosaic_nine=0.0,  # part of the mosaics that have nine pictures instead
                    affine=0.0,  # probability of what follows, of a mosaic or a resized picture
                    affine_degrees=0.0,  # at most, either way
                    affine_translate=0.1,  # part of a side, at most, either way
                    affine_scale=0.5,  # factor 1 - 0.5 .. 1 + 0.5
                    affine_shear=0.0,  # degrees, at most, either way, each axis by itself
                    affine_perspective=0.0,  # at most, either way; 0.001 is much
                    box_min_side=2.0,  # px; objects that mosaic or affine leave smaller go ...
                    box_min_part=0.1,  # ... and those of which so little is left ...
                    box_max_ratio=100.0,  # ... and those so much longer than wide, or the reverse
                    mixup=0.0,  # probability of a second picture, made alike, shining through
                    mixup_beta=32.0,  # its part is of the distribution Beta(32, 32)
                    hsv=0.0,  # probability of changed hue, saturation and value
                    hsv_gains=(0.015, 0.7, 0.4),  # of each, at most
                    hsv_form="yolov5",  # or darknet, see docs/data.md
                    cutout=0.0,  # probability
                    cutout_holes=(1, 5),  # least and largest number
                    cutout_size=(0.05, 0.2),  # of the sides of a hole, part of the image
                ),
                pad_value=MEAN_COLOUR,
                max_boxes=100,  # slots for objects; the largest are kept
                min_side=32,  # px; smaller images are not trained on
                skip_broken=True,  # in training leave out what cannot be read, and count it
                eval_skip_broken=False,  # evaluation stops there instead
                read_threads=2,
                workers=0,  # processes that read instead of threads
            ),
            train=dict(
                batch_size=16,
                accumulate=1,  # parts that a batch is worked through in, for want of memory
                epochs=0,  # length of the run; 0: `steps` counts
                steps=0,
                log_every=50,  # steps
                eval_every=0,  # steps; 0: every epoch
                checkpoint_every=0,  # steps; 0: every epoch
                keep_last=2,  # checkpoints besides the best
            ),
            optim=dict(
                name="sgd",  # sgd or adamw
                lr=0.01,
                lr_batch_size=16,  # lr is scaled by batch_size over this; 0: it is taken as it is
                momentum=0.9,  # of sgd; beta 1 of adamw
                nesterov=False,
                weight_decay=1e-4,
                no_decay=(),  # regexes of paths, such as params/.*/bias
                freeze=(),  # regexes of paths, besides what the model freezes
                clip_norm=0.0,  # global norm of the gradients; 0: no clipping
                schedule="step",  # step, cosine, linear or constant
                milestones=(8, 11),  # in epochs, or in steps where train.epochs is 0
                milestone_factor=0.1,
                warmup_steps=500,
                warmup_factor=0.001,
                warmup_power=1.0,  # 1: linear; 4: darknet's burn_in
                warmup_momentum=0.0,  # of sgd at the first step, rising to momentum; 0: no warm-up
                warmup_bias_lr=0.0,  # of biases at the first step, nearing lr; 0: as all others
                biases=("params/.*/bias",),  # regexes of the paths that warmup_bias_lr is for
                final_factor=0.0,  # cosine and linear end at this part of lr
                decay_from="warmup",  # they begin at the end of the warm-up, or at the "start"
                ema_decay=0.0,  # of the averaged weights that are evaluated; 0: no averaging
                ema_warmup=0,  # steps; the decay begins at 0 and nears ema_decay as in YOLOv5
            ),
            eval=dict(
                batch_size=8,
                best_by="AP",  # AP, AP50, AP75, mAP07 or mAP12: the highest is the best checkpoint
                views=("image",),  # whose candidates are suppressed together: image, mirror
                pictures=16,  # drawn at the end of training
                threshold=0.3,  # score of what is drawn
            ),
        )
    )
    config.lock()
    config.model.unlock()
    return config


def schedule_1x(config: ConfigDict) -> None:
    """The "1x" schedule of the Mask R-CNN code bases: 12 epochs, divided by 10 after 8 and 11."""
    config.train.update(batch_size=16, epochs=12)
    config.optim.update(
        name="sgd",
        lr=0.01,
        lr_batch_size=16,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        milestones=(8, 11),
        warmup_steps=500,
        warmup_factor=0.001,
    )


def coco_files(config: ConfigDict) -> None:
    """COCO 2017 as it unpacks: train2017, val2017 and annotations under one root."""
    config.data.update(
        source="coco",
        root="data/coco",
        train_images="train2017",
        train_annotations="annotations/instances_train2017.json",
        eval_images="val2017",
        eval_annotations="annotations/instances_val2017.json",
    )


def voc_files(config: ConfigDict) -> None:
    """PASCAL VOC 07+12 for training, the test split of 07 for evaluation."""
    config.data.update(
        source="voc",
        root="data/VOCdevkit",
        train_splits=("2007_trainval", "2012_trainval"),
        eval_splits=("2007_test",),
    )


def from_imagenet(config: ConfigDict, name: str) -> None:
    """Starts a ResNet-50 from torchvision's ImageNet weights, as published results do.

    `name` is the path of the experiment, which has a variant `scratch`.
    """
    file, folder = "resnet50-0676ba61.pth", "weights/resnet50_torchvision"
    config.init_from = folder
    config.init_skip = ("params/(neck|head)/.*",)
    config.init_help = (
        f"download torchvision's {file}, convert it with `python -m converters.convert --source"
        f" torchvision --config {name} --input {file} --output {folder}`, or train from random"
        f" weights with `--config {name}:scratch`"
    )


def from_scratch(config: ConfigDict) -> None:
    """Random weights: live norms, and nothing frozen."""
    config.model.update(backbone_norm="batch", frozen_stages=0)
    config.init_from = ""
    config.init_skip = ()
    config.init_help = ""


def small_from_scratch(config: ConfigDict, num_classes: int, warmup_steps: int) -> None:
    """RetinaNet-18 with 64 channels, from random weights, with AdamW: for a CPU, or few images."""
    config.model = ConfigDict(
        dict(
            num_classes=num_classes,
            depth=18,
            neck_width=64,
            head_width=64,
            head_convs=2,
            octave_base_scale=3.0,  # anchors from 24 px: objects of 16 px and more
            delta_stds=(0.1, 0.1, 0.2, 0.2),
            box_weight=0.25,  # small stds make the box term large
        )
    )
    from_scratch(config)
    config.train.batch_size = 8
    config.optim.update(
        name="adamw",
        lr=1.5e-3,
        lr_batch_size=8,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=warmup_steps,
        warmup_factor=0.01,
        clip_norm=10.0,
    )


def yolov3_training(config: ConfigDict, epochs: int, milestones: tuple, warmup_steps: int) -> None:
    """Augmentation and optimizer of mmdetection's YOLOv3."""
    config.data.augment.update(
        photometric=1.0,
        expand=0.5,
        expand_ratio=2.0,
        crop="min_iou",
        crop_min_ious=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
    config.train.update(batch_size=64, epochs=epochs)
    config.optim.update(
        lr=0.001,
        lr_batch_size=64,
        weight_decay=5e-4,
        clip_norm=35.0,
        milestones=milestones,
        warmup_steps=warmup_steps,
        warmup_factor=0.1,
    )


def darknet_training(config: ConfigDict, network: str) -> None:
    """How darknet trains a standard network: [net] and the data keys of [yolo] in its cfg.

    `max_batches` and `steps` are counted in batches of 64, which are worked through in parts
    (`subdivisions`); the learning rate burns in with the fourth power.  With `random=1` the sizes
    are those of darknet, 1/1.4 to 1.4 of the cfg's, by 32 px; it keeps one for ten batches, here
    every step draws one.  Mosaics are half of the batches there and half of the pictures here.
    What `jitter` shows beside a picture is grey, not the picture's mean.  `resize=1.5` of tiny
    YOLOv4 is not there.
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
        rounding="whole",  # of a letterbox, should `resize` become one
        demo_rounding="whole",
        pad_value=(128, 128, 128),
        max_boxes=200,
        keep_empty=True,
        min_side=0,
    )
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


def from_darknet53(config: ConfigDict, name: str) -> None:
    """Starts YOLOv3's backbone from mmdetection's ImageNet weights; `name` as above."""
    file, folder = "darknet53-a628ea1b.pth", "weights/darknet53_mmdet"
    config.init_from = folder
    config.init_skip = (r"\w+/(neck|head)/.*",)
    config.init_help = (
        f"download mmdetection's {file}, convert it with `python -m converters.convert --source"
        f" mmdet --config {name} --input {file} --output {folder}`, or train from random weights"
        f" with `--config {name}:scratch`"
    )


# Depth and width multiple of YOLOv5's sizes.
_YOLOV5_SIZES = {
    "n": (0.33, 0.25),
    "s": (0.33, 0.5),
    "m": (0.67, 0.75),
    "l": (1.0, 1.0),
    "x": (1.33, 1.25),
}
_YOLOV5_FOUR_LEVELS = dict(
    anchor_sizes=(
        ((19, 27), (44, 40), (38, 94)),
        ((96, 68), (86, 152), (180, 137)),
        ((140, 301), (303, 264), (238, 542)),
        ((436, 615), (739, 380), (925, 792)),
    ),
    level_balance=(4.0, 1.0, 0.25, 0.06),
)


def yolov5_network(config: ConfigDict, variant: str) -> None:
    """The network of a variant: "s" of releases 6.0 to 7.0, "s_v5" of 4.0 and 5.0, "s_v3" of 3.0.

    "s6" has four levels of detection, for images of 1280 px.
    """
    size, _, release = variant.partition("_")
    letter, four_levels = size[:1], size.endswith("6")
    known = letter in _YOLOV5_SIZES and size in (letter, f"{letter}6")
    known &= variant in (size, f"{size}_v5", f"{size}_v3") and not (four_levels and release == "v3")
    if not known or (letter == "n" and release):
        raise ValueError(
            f"variant {variant!r} is unknown; there are the sizes from 'n' over s, m and l to 'x',"
            " also with 6 behind them for four levels, and from s on with _v5 or _v3 for older"
            " releases."
        )
    depth, width = _YOLOV5_SIZES[letter]
    config.model.update(depth_multiple=depth, width_multiple=width)
    if release:
        config.model.update(stem="focus", pool="spp", repeats=(3, 9, 9, 3))
    if release == "v3":
        config.model.update(block="csp", activation="hard_swish")
    if four_levels:
        last = (3, 9, 9, 3, 3) if release else (3, 6, 9, 3, 3)
        pool = dict(pool_size=3) if release else {}
        config.model.update(repeats=last, **pool, **_YOLOV5_FOUR_LEVELS)


def yolov5_training(config: ConfigDict, variant: str, side: int, warmup_steps: int) -> None:
    """How the reference trains such a network on images of `side` px, without copy-paste.

    Releases 6.0 to 7.0 train n and s as `hyp.scratch-low` says and the others as `-high`; before
    them there was one set for all.  The loss is that of 64 images, whatever the batch is.
    `warmup_steps` are those of three epochs.
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

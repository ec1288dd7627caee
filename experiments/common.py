"""What experiments share: all keys that a command line can override, data, schedules and weights.

The recipes that train YOLOv3, YOLOv5 and darknet are in experiments/recipes.
"""

from ml_collections import ConfigDict

from detlab.data import settings

# ImageNet's mean colour, about 0 after normalisation, which pads an image to its canvas.
MEAN_COLOUR = (124, 116, 104)


def base(detector: str, **model) -> ConfigDict:
    """All keys with neutral values, locked, so an unknown key is an error.

    Only `model` is open: it holds the detector's fields that differ from their defaults.
    """
    config = ConfigDict(
        dict(
            detector=detector,
            model=model,
            seed=0,
            # Weights to start from: a workdir, a checkpoint or a folder from converters.convert.
            init_from="",
            init_skip=(),  # regexes of paths, such as params/head/.*, that may differ
            init_help="",  # what to do if init_from does not exist
            compilation_cache=True,  # keep compiled programs in the user's cache folder
            data=dict(
                source="shapes",  # shapes, voc, coco, wider or tfds
                root="data",
                class_names=(),  # (): those of the source
                rename_classes=(),  # pairs (name in the files, name in class_names)
                tfds_name="",  # tfds: "voc/2007"; root is the folder of prepared data sets
                train_splits=(),  # voc: "2007_trainval", or "train" in a folder without years
                eval_splits=(),  # wider, tfds: "train", "val" ...
                train_images="",  # coco: folder below root
                train_annotations="",  # coco: json below root
                eval_images="",
                eval_annotations="",
                # Photos that a camera stored turned: auto (the annotated size decides, else
                # upright), upright or stored.
                exif="auto",
                train_also=(),  # more data: for each source a dict of the keys here that differ
                train_repeat=1,  # passes over the training data per epoch
                keep_empty=False,  # train on images without objects too
                canvases=((128, 128),),  # (height, width) px; each compiles once
                resize="fit",  # fit (keeps the ratio), letterbox (fit, centred) or stretch
                size_limits=(),  # largest (long, short) sides, px; (): no limit
                # For sides that keep their ratio: half_up (mmcv), half_even, down, up or whole ...
                rounding="half_up",
                demo_rounding="half_up",  # ... and the same in the demo, see docs/data.md
                eval_shrink="linear",  # how evaluation resizes images: linear, area or corners
                # Multi-scale training: alternatives to `canvases`, one drawn per step ...
                multiscale_canvases=(),  # (((320, 320),), ((416, 416),))
                # ... and alternatives to `size_limits`, one drawn per image.
                multiscale_limits=(),  # ((1333, 640), (1333, 800))
                multiscale="list",  # list: one of the limits; range: any between the extremes
                flip_horizontal=0.5,  # probabilities
                flip_vertical=0.0,
                # Random changes to images, none by default; detlab/data/settings.py explains the
                # keys.
                augment=settings.Augment()._asdict(),
                pad_value=MEAN_COLOUR,
                max_boxes=100,  # slots for objects; the largest objects are kept
                min_side=32,  # px; training skips smaller images
                min_object=0,  # px; training ignores objects with a smaller side
                skip_broken=True,  # training skips and counts unreadable images
                eval_skip_broken=False,  # evaluation stops at them instead
                read_threads=2,
                workers=0,  # processes that read images, instead of threads
            ),
            train=dict(
                batch_size=16,
                accumulate=1,  # parts that a batch is split into, to save memory
                epochs=0,  # length of the run; 0: use `steps`
                steps=0,
                log_every=50,  # steps
                eval_every=0,  # steps; 0: every epoch
                checkpoint_every=0,  # steps; 0: every epoch
                keep_last=2,  # checkpoints kept in addition to the best
            ),
            optim=dict(
                name="sgd",  # sgd or adamw
                lr=0.01,
                lr_batch_size=16,  # lr is scaled by batch_size / lr_batch_size; 0: not scaled
                momentum=0.9,  # of sgd; beta 1 of adamw
                nesterov=False,
                weight_decay=1e-4,
                no_decay=(),  # regexes of paths, such as params/.*/bias
                freeze=(),  # regexes of paths, in addition to those that the model freezes
                clip_norm=0.0,  # global norm of the gradients; 0: no clipping
                schedule="step",  # step, cosine, linear or constant
                milestones=(8, 11),  # in epochs, or in steps if train.epochs is 0
                milestone_factor=0.1,
                warmup_steps=500,
                warmup_factor=0.001,
                warmup_power=1.0,  # 1: linear; 4: darknet's burn_in
                warmup_momentum=0.0,  # of sgd at the first step, rising to momentum; 0: no warm-up
                warmup_bias_lr=0.0,  # of biases at the first step, moving to lr; 0: as all others
                biases=("params/.*/bias",),  # regexes of the paths that have warmup_bias_lr
                final_factor=0.0,  # cosine and linear end at this fraction of lr
                decay_from="warmup",  # they start at the end of the warm-up, or at the "start"
                ema_decay=0.0,  # of the averaged weights, which are evaluated; 0: no averaging
                ema_warmup=0,  # steps; the decay rises from 0 towards ema_decay as in YOLOv5
            ),
            eval=dict(
                batch_size=8,
                best_by="AP",  # AP, AP50, AP75, mAP07 or mAP12: selects the best checkpoint
                views=("image",),  # image, mirror; NMS takes the candidates of all views together
                # Canvases as small as each image allows, in multiples of so many px, a letterbox
                # with the margin of YOLOv5's val.py; 0: `data.canvases`.
                rectangles=0,
                pictures=16,  # drawn at the end of training
                threshold=0.3,  # lowest score of a drawn box
            ),
            predict=dict(  # the demo
                threshold=0.3,  # lowest score of an object
                top_k=100,  # most objects of an image
                rectangles=0,  # as in `eval`, without a margin, as in YOLOv5's detect.py
                shrink="linear",  # as `data.eval_shrink`
                model=dict(),  # fields that differ from those of `model`
            ),
        )
    )
    config.lock()
    config.model.unlock()
    config.predict.model.unlock()
    return config


def coco_files(config: ConfigDict) -> None:
    """COCO 2017 as unpacked: train2017, val2017 and annotations under one root."""
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
        max_boxes=64,
    )
    config.eval.best_by = "mAP07"


def bccd_files(config: ConfigDict) -> None:
    """BCCD, 364 microscope images of blood cells, in VOC layout."""
    config.data.update(
        source="voc",
        root="data/bccd",
        class_names=("RBC", "WBC", "Platelets"),
        train_splits=("trainval",),
        eval_splits=("test",),
        flip_vertical=0.5,  # a slide has no upper side
        max_boxes=48,
    )
    config.eval.best_by = "AP50"


def schedule_1x(config: ConfigDict) -> None:
    """The "1x" schedule of the Mask R-CNN code bases, with their image size.

    12 epochs, with the learning rate divided by 10 after epochs 8 and 11.
    """
    config.data.update(canvases=((800, 1344), (1344, 800)), size_limits=(1333, 800))
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


def coco_1x(config: ConfigDict) -> None:
    """COCO 2017 with the 1x schedule."""
    coco_files(config)
    schedule_1x(config)


def voc_1x(config: ConfigDict) -> None:
    """PASCAL VOC for 12 epochs, as in mmdetection's 4 epochs that repeat the data three times."""
    voc_files(config)
    schedule_1x(config)
    config.data.update(canvases=((608, 1024), (1024, 608)), size_limits=(1000, 600))
    config.optim.milestones = (9, 11)


def start_from(
    config: ConfigDict, name: str, file: str, folder: str, source: str, authors: str
) -> None:
    """Starts from converted weights, and says how to get them if they are missing.

    Args:
      name: path of the experiment, which has a variant `scratch`.
      file: name of the published file.
      folder: of the converted weights.
      source: the value of `detlab convert --source`, and further flags.
      authors: who publishes the file.
    """
    config.init_from = folder
    config.init_help = (
        f"download {authors}'s {file} and convert it with `detlab convert --source {source}"
        f" --config {name} --input {file} --output {folder}`, or train from random"
        f" weights with `--config {name}:scratch`"
    )


def from_imagenet(config: ConfigDict, name: str) -> None:
    """Starts a ResNet-50 from torchvision's ImageNet weights, as published results do.

    `name` is the path of the experiment, which has a variant `scratch`.
    """
    file, folder = "resnet50-0676ba61.pth", "weights/resnet50_torchvision"
    start_from(config, name, file, folder, source="torchvision", authors="torchvision")


def from_caffe(config: ConfigDict, name: str) -> None:
    """A caffe ResNet-50 from Detectron2's ImageNet weights: constant norms, undivided pixels.

    `name` is the path of the experiment, which has a variant `scratch`.  Whole published detectors
    of this kind are converted with --bgr.
    """
    config.model.update(style="caffe", backbone_norm="frozen", pixel_std=(1.0, 1.0, 1.0))
    file, folder = "resnet50_msra-5891d200.pth", "weights/resnet50_msra"
    start_from(config, name, file, folder, source="torchvision --bgr", authors="OpenMMLab")


def from_scratch(config: ConfigDict) -> None:
    """Random weights: norms use batch statistics, and nothing is frozen."""
    config.model.update(backbone_norm="batch", frozen_stages=0)
    config.init_from = ""
    config.init_help = ""

"""What experiments share: every key that a command line may override, data, schedules and starts.

How YOLOv3, YOLOv5 and darknet train is in experiments/recipes.
"""

from ml_collections import ConfigDict

from detlab.data import settings

# ImageNet's mean colour, about 0 after normalisation: what surrounds an image on its canvas.
MEAN_COLOUR = (124, 116, 104)


def base(detector: str, **model) -> ConfigDict:
    """All keys with neutral values, locked: a key that is not here is refused.

    `model` alone is open, as its fields are the detector's: those that are not its defaults.
    """
    config = ConfigDict(
        dict(
            detector=detector,
            model=model,
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
                # What changes pictures at random, by default nothing: detlab/data/settings.py says
                # what each key means.
                augment=settings.Augment()._asdict(),
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
        max_boxes=64,
    )
    config.eval.best_by = "mAP07"


def bccd_files(config: ConfigDict) -> None:
    """BCCD, 364 microscope pictures of blood cells, in VOC layout."""
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
    """The "1x" schedule of the Mask R-CNN code bases, with their size of images.

    12 epochs, the learning rate divided by 10 after 8 and 11.
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
    """PASCAL VOC with mmdetection's schedule: 4 epochs that repeat the data three times, so 12."""
    voc_files(config)
    schedule_1x(config)
    config.data.update(canvases=((608, 1024), (1024, 608)), size_limits=(1000, 600))
    config.optim.milestones = (9, 11)


def start_from(
    config: ConfigDict, name: str, file: str, folder: str, source: str, authors: str
) -> None:
    """Starts from converted weights, and says how to get them where they are missing.

    Args:
      name: path of the experiment, which has a variant `scratch`.
      file: that its authors publish.
      folder: of the converted weights.
      source: of the file, in the words of `detlab convert --source`.
    """
    config.init_from = folder
    config.init_help = (
        f"download {authors}'s {file}, convert it with `detlab convert --source {source}"
        f" --config {name} --input {file} --output {folder}`, or train from random"
        f" weights with `--config {name}:scratch`"
    )


def from_imagenet(config: ConfigDict, name: str) -> None:
    """Starts a ResNet-50 from torchvision's ImageNet weights, as published results do.

    `name` is the path of the experiment, which has a variant `scratch`.
    """
    file, folder = "resnet50-0676ba61.pth", "weights/resnet50_torchvision"
    start_from(config, name, file, folder, source="torchvision", authors="torchvision")


def from_scratch(config: ConfigDict) -> None:
    """Random weights: live norms, and nothing frozen."""
    config.model.update(backbone_norm="batch", frozen_stages=0)
    config.init_from = ""
    config.init_help = ""

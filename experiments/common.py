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
                source="shapes",  # shapes, voc or coco
                root="data",
                class_names=(),  # () for those of the source
                train_splits=(),  # voc: "2007_trainval", or "train" in a folder without years
                eval_splits=(),
                train_images="",  # coco: folder below root
                train_annotations="",  # coco: json below root
                eval_images="",
                eval_annotations="",
                canvases=((128, 128),),  # (height, width) px; each compiles once
                resize="fit",  # fit (keeps the ratio) or stretch
                size_limits=(),  # (long, short) px that the sides may not exceed; () for none
                flip_horizontal=0.5,  # probabilities
                flip_vertical=0.0,
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
                schedule="step",  # step, cosine or constant
                milestones=(8, 11),  # in epochs, or in steps where train.epochs is 0
                milestone_factor=0.1,
                warmup_steps=500,
                warmup_factor=0.001,
                final_factor=0.0,  # cosine ends at this part of lr
            ),
            eval=dict(
                batch_size=8,
                best_by="AP",  # AP, AP50, AP75, mAP07 or mAP12: the highest is the best checkpoint
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


def from_imagenet(config: ConfigDict, name: str, depth: int, file: str, scratch: str) -> None:
    """Starts the backbone from torchvision's ImageNet weights, as published results do."""
    folder = f"weights/resnet{depth}_torchvision"
    config.init_from = folder
    config.init_skip = ("params/(neck|head)/.*",)
    config.init_help = (
        f"download torchvision's {file}, convert it with `python -m converters.convert --source"
        f" torchvision --config {name} --input {file} --output {folder}`, or train from random"
        f" weights with `--config {scratch}`"
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

"""How mmdetection trains SSD."""

from ml_collections import ConfigDict

from detlab.experiments import common

# The fields of SSD512 that differ from those of SSD300.
SSD512 = dict(
    extra_layers=(
        (512, 3, 2, 1),
        (256, 3, 2, 1),
        (256, 3, 2, 1),
        (256, 3, 2, 1),
        (256, 4, 1, 1),
    ),
    input_size=512,
    side_percents=(4, 10, 26, 42, 58, 74, 90, 106),
    level_ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
)
VARIANTS = ("512", "scratch")


def fields(variant: str) -> dict:
    """The fields of the network that a variant asks for, with the anchors of COCO."""
    return dict(SSD512) if variant == "512" else {}


def voc_fields(variant: str) -> dict:
    """The same with the larger anchors of PASCAL VOC."""
    if variant == "512":
        return {**SSD512, "side_percents": (7, 15, 30, 45, 60, 75, 90, 105)}
    return dict(side_percents=(10, 20, 37, 54, 71, 88, 105))


def training(config: ConfigDict, variant: str, lr: float, milestones: tuple, repeat: int) -> None:
    """Sets augmentation and the optimizer for 24 epochs of `repeat` passes over the data."""
    side = 512 if variant == "512" else 300
    config.data.update(canvases=((side, side),), resize="stretch", train_repeat=repeat)
    config.data.augment.update(photometric=1.0, expand=0.5, crop="min_iou")
    config.train.update(batch_size=64, epochs=24)
    config.optim.update(
        lr=lr,
        lr_batch_size=64,
        weight_decay=5e-4,
        milestones=milestones,
        warmup_steps=500,
        warmup_factor=0.001,
    )


def start(config: ConfigDict, variant: str, name: str) -> None:
    """Starts the backbone from ImageNet weights, or from random ones in the variant `scratch`.

    `name` is the path of the experiment.
    """
    if variant == "scratch":
        # The pretrained VGG16 takes pixels as they are and has no norms, without which a random
        # one hardly learns.
        config.model.update(norm="batch", pixel_std=(58.395, 57.12, 57.375))
        return
    file, folder = "vgg16_caffe-292e1171.pth", "weights/vgg16_mmdet"
    common.start_from(config, name, file, folder, source="mmdet", authors="mmdetection")

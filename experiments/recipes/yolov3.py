"""How mmdetection trains YOLOv3."""

from ml_collections import ConfigDict

from detlab.experiments import common


def training(config: ConfigDict, epochs: int, milestones: tuple, warmup_steps: int) -> None:
    """Sets augmentation and optimizer."""
    config.data.pad_value = (0, 0, 0)
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


def start(config: ConfigDict, variant: str, name: str) -> None:
    """Starts the backbone from ImageNet weights, or from random ones in the variant `scratch`.

    `name` is the path of the experiment.
    """
    if variant == "scratch":
        config.model.backbone_norm = "batch"
        return
    file, folder = "darknet53-a628ea1b.pth", "weights/darknet53_mmdet"
    common.start_from(config, name, file, folder, source="mmdet", authors="mmdetection")

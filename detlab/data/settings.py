"""How pictures become batches: one value, made of `config.data`, for the whole data folder.

The defaults of `config.data.augment` stand here alone; experiments/common.py takes them over.
"""

from typing import Any, NamedTuple


class MultiScale(NamedTuple):
    """What the plan draws besides the order: nothing by default."""

    canvases: tuple = ()  # alternatives to the canvases, each of as many; a step draws one
    limits: tuple = ()  # alternatives of (long, short) px; an image draws one
    mode: str = "list"  # list: one of `limits`; range: each side from its least to its largest


class Augment(NamedTuple):
    """What changes a picture at random, besides flips, in this order.

    The picture is resized after the crop, and flipped before the cut-out.
    """

    photometric: float = 0.0  # probability of SSD's distortion of colours
    brightness: float = 32.0  # at most, of 255
    contrast: float = 0.5  # factor 1 - 0.5 .. 1 + 0.5
    saturation: float = 0.5
    hue: float = 18.0  # degrees
    expand: float = 0.0  # probability of a larger, mean-coloured picture around the image
    expand_ratio: float = 4.0  # at most
    crop: str = "none"  # random, min_iou (SSD), center (CornerNet) or jitter (darknet)
    crop_probability: float = 1.0  # of random
    crop_size: tuple[float, float] = (0.3, 1.0)  # sides of the crop, least and largest part; random
    crop_min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # min_iou: one, or no condition
    crop_side: int = 511  # px of a square around a point; of center
    crop_scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # one is drawn
    crop_border: int = 128  # px that the point keeps from the edges, less in small images
    crop_jitter: float = 0.3  # each side moves out or in by at most this part; of jitter
    mosaic: float = 0.0  # probability of four pictures around a point in the place of one
    mosaic_nine: float = 0.0  # part of the mosaics that have nine pictures instead
    affine: float = 0.0  # probability of what follows, of a mosaic or a resized picture
    affine_degrees: float = 0.0  # at most, either way
    affine_translate: float = 0.1  # part of a side, at most, either way
    affine_scale: float = 0.5  # factor 1 - 0.5 .. 1 + 0.5
    affine_shear: float = 0.0  # degrees, at most, either way, each axis by itself
    affine_perspective: float = 0.0  # at most, either way; 0.001 is much
    box_min_side: float = 2.0  # px; objects that mosaic or affine leave smaller go ...
    box_min_part: float = 0.1  # ... and those of which so little is left ...
    box_max_ratio: float = 100.0  # ... and those so much longer than wide, or the reverse
    mixup: float = 0.0  # probability of a second picture, made alike, shining through
    mixup_beta: float = 32.0  # its part is of the distribution Beta(32, 32)
    hsv: float = 0.0  # probability of changed hue, saturation and value
    hsv_gains: tuple[float, float, float] = (0.015, 0.7, 0.4)  # of each, at most
    hsv_form: str = "yolov5"  # or darknet, see docs/data.md
    cutout: float = 0.0  # probability
    cutout_holes: tuple[int, int] = (1, 5)  # least and largest number
    cutout_size: tuple[float, float] = (0.05, 0.2)  # of the sides of a hole, part of the image


class Settings(NamedTuple):
    """All that the streams of batches read of `config.data`."""

    canvases: tuple  # (height, width) px of the batches; each image goes to the one that suits it
    max_boxes: int  # slots for objects
    pad_value: int | tuple[int, int, int]  # 0..255 outside the content, one or of R, G, B
    # fit: the largest picture of the same ratio on the canvas; letterbox: the same in the middle;
    # stretch: the whole canvas; (long, short) px: limits on the sides in addition to fit.
    resize: str | tuple[int, int] = "fit"
    rounding: str = "half_up"  # of sides that keep their ratio, see `transforms.ROUNDINGS`
    shrink: str = "linear"  # how pictures become smaller: linear or area
    multiscale: MultiScale = MultiScale()  # its limits take the place of those of `resize`
    augment: Augment = Augment()
    flip_horizontal: float = 0.5  # probabilities
    flip_vertical: float = 0.0
    skip_broken: bool = False  # leave out what cannot be read, and tell; else it raises
    read_threads: int = 2  # 0 reads when asked
    workers: int = 0  # processes that read instead; a script needs `if __name__ == "__main__"`


def of(data: Any, use: str) -> Settings:
    """The settings that a config means.

    Args:
      data: the config's block.
      use: "train", "eval" or "demo"; the last two draw nothing.
    """
    settings = Settings(
        canvases=data.canvases,
        max_boxes=data.max_boxes,
        pad_value=data.pad_value,
        resize=tuple(data.size_limits) or data.resize,
        rounding=data.demo_rounding if use == "demo" else data.rounding,
        shrink=data.eval_shrink if use == "eval" else "linear",
        multiscale=MultiScale(data.multiscale_canvases, data.multiscale_limits, data.multiscale),
        augment=Augment(**data.augment),
        flip_horizontal=data.flip_horizontal,
        flip_vertical=data.flip_vertical,
        skip_broken=data.skip_broken if use == "train" else data.eval_skip_broken,
        read_threads=data.read_threads,
        workers=data.workers,
    )
    return settings if use == "train" else without_chance(settings)


def without_chance(settings: Settings) -> Settings:
    """The same for pictures as they are."""
    return settings._replace(
        multiscale=MultiScale(), augment=Augment(), flip_horizontal=0.0, flip_vertical=0.0
    )

"""How images become batches: one value, made from `config.data`, that all of detlab/data reads.

The defaults of `config.data.augment` are defined only here; experiments/common.py copies them.
"""

from typing import Any, NamedTuple

import numpy as np


class MultiScale(NamedTuple):
    """Sizes that the plan draws at random; by default it draws none."""

    canvases: tuple = ()  # alternatives, each with as many canvases; each step draws one
    limits: tuple = ()  # alternatives of (long, short) px; each image draws one
    mode: str = "list"  # list: one of `limits`; range: each side between its least and largest


class Augment(NamedTuple):
    """Random changes of an image besides flips, in the order in which they happen.

    The image is resized after the crop and flipped before the cut-out.
    """

    photometric: float = 0.0  # probability of SSD's colour distortion
    brightness: float = 32.0  # largest change, of 255
    contrast: float = 0.5  # factor 1 - 0.5 .. 1 + 0.5
    saturation: float = 0.5
    hue: float = 18.0  # degrees
    expand: float = 0.0  # probability of a border around the image, filled with pad_value
    expand_ratio: float = 4.0  # largest ratio of the new sides to the old
    crop: str = "none"  # random, min_iou (SSD), center (CornerNet) or jitter (darknet)
    crop_probability: float = 1.0  # for random
    crop_size: tuple[float, float] = (0.3, 1.0)  # for random: least and largest fraction of a side
    crop_min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # for min_iou: one or no condition
    crop_side: int = 511  # for center: px, side of a square around a point
    crop_scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # factors of the side
    crop_border: int = 128  # for center: least px from the point to the edges, less in small images
    crop_jitter: float = 0.3  # for jitter: largest move of each side, as a fraction
    mosaic: float = 0.0  # probability of a mosaic of four images
    mosaic_nine: float = 0.0  # fraction of the mosaics that have nine images instead
    affine: float = 0.0  # probability of an affine map, of a mosaic or a resized image
    affine_degrees: float = 0.0  # largest rotation, either way
    affine_translate: float = 0.1  # largest shift, either way, as a fraction of the side
    affine_scale: float = 0.5  # factor 1 - 0.5 .. 1 + 0.5
    affine_shear: float = 0.0  # degrees, largest, either way, for each axis
    affine_perspective: float = 0.0  # largest, either way; 0.001 is a lot
    box_min_side: float = 2.0  # px; mosaic and affine drop objects that become smaller,
    box_min_part: float = 0.1  # that keep a smaller fraction of their area
    box_max_ratio: float = 100.0  # or whose sides have a larger ratio
    mixup: float = 0.0  # probability of blending in a second image, made the same way
    mixup_beta: float = 32.0  # the weight is drawn from Beta(32, 32)
    hsv: float = 0.0  # probability of changed hue, saturation and value
    hsv_gains: tuple[float, float, float] = (0.015, 0.7, 0.4)  # largest change of each
    hsv_form: str = "yolov5"  # or darknet, see docs/data.md
    cutout: float = 0.0  # probability of holes
    cutout_holes: tuple[int, int] = (1, 5)  # least and largest number
    cutout_size: tuple[float, float] = (0.05, 0.2)  # sides of a hole, fraction of the image


class Settings(NamedTuple):
    """Everything that the batch streams read from `config.data`."""

    canvases: tuple  # (height, width) px of the batches; each image uses the one that suits it best
    max_boxes: int  # slots for objects
    pad_value: int | tuple[int, int, int]  # 0..255 outside the content: one number, or R, G, B
    # fit: the largest size of the same aspect ratio on the canvas; letterbox: the same, centred;
    # stretch: the whole canvas; (long, short) px: limits on the sides in addition to fit.
    resize: str | tuple[int, int] = "fit"
    rounding: str = "half_up"  # of sides when the ratio is kept, see `transforms.ROUNDINGS`
    shrink: str = "linear"  # interpolation, see `transforms.SHRINKS`
    # Each image gets the smallest canvas with sides that are multiples of this many px instead of
    # one of `canvases`, which still limit its size; 0: the canvases.
    rectangles: int = 0
    margin: float = 0.0  # added to the sides of a letterbox before they are rounded up, multiples
    multiscale: MultiScale = MultiScale()  # its limits replace those of `resize`
    augment: Augment = Augment()
    flip_horizontal: float = 0.5  # probabilities
    flip_vertical: float = 0.0
    skip_broken: bool = False  # skip and report images that cannot be read; else raise
    read_threads: int = 2  # 0: read on demand
    workers: int = 0  # processes that read instead; scripts need `if __name__ == "__main__"`

    @property
    def dtype(self) -> np.dtype:
        """Of the images of batches, in 0..255."""
        return np.dtype(np.float32 if self.shrink == "corners" else np.uint8)

    @property
    def longest(self) -> int:
        """The longest side of the canvases, px."""
        return max(side for canvas in self.canvases for side in canvas)


def of(data: Any, use: str, block: Any = None) -> Settings:
    """The settings that a config asks for.

    Args:
      data: the config's `data` block.
      use: "train", "eval" or "demo"; nothing is random in the last two.
      block: the config's `eval` for "eval" and its `predict` for "demo"; without it, the images are
        on the canvases.
    """
    shrink = "linear"
    if use == "eval":
        shrink = data.eval_shrink
    elif use == "demo" and block is not None:
        shrink = block.shrink
    rectangles = 0 if use == "train" or block is None else block.rectangles
    settings = Settings(
        canvases=data.canvases,
        max_boxes=data.max_boxes,
        pad_value=data.pad_value,
        resize=tuple(data.size_limits) or data.resize,
        rounding=data.demo_rounding if use == "demo" else data.rounding,
        shrink=shrink,
        rectangles=rectangles,
        margin=0.5 if use == "eval" else 0.0,  # YOLOv5's val.py and detect.py
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
    """The settings without anything random."""
    return settings._replace(
        multiscale=MultiScale(), augment=Augment(), flip_horizontal=0.0, flip_vertical=0.0
    )

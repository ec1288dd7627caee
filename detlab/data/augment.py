"""Makes the record that enters a batch: crop, mosaic, affine map, resize, flips."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from detlab.data import affine, mosaic, plan, transforms
from detlab.data import settings as settings_lib

Record = dict[str, Any]
Change = Callable[[Record, np.random.Generator], Record]
Watch = Callable[[str, Record], None]
Resize = Callable[..., Record]  # (record, height, width) -> record; some take `limits` too


class Augmenter(NamedTuple):
    """Makes the record that enters the batch for one row of a step.

    `read(i, skipped)` returns record i, or None to leave the row empty.  It appends a sentence to
    `skipped` for each image that cannot be read.
    """

    read: Callable[[int, list[str]], Record | None]
    num_images: int
    settings: settings_lib.Settings
    before: tuple[Change, ...]  # applied before the resize
    resize: Resize
    resize_tile: Resize  # for the tiles of a mosaic
    after: tuple[Change, ...]

    def __call__(
        self, step: plan.Step, row: int, skipped: list[str], watch: Watch | None = None
    ) -> Record | None:
        """The transformed record for a row of the step; None if the row stays empty.

        `watch` gets the name of each transform and the record after it; a transform that changed
        nothing gives the same object as before.  Of the pictures of a mosaic or a mixup, only the
        row's own is watched.
        """
        augment = self.settings.augment
        rng = np.random.default_rng(int(step.seed[row]))
        limits = {} if step.limits is None else {"limits": step.limits[row].tolist()}
        at = _Row(step.canvas, limits, rng, skipped, watch)
        record = self._picture(int(step.index[row]), at)
        if record is None:
            return None
        if augment.mixup and rng.random() < augment.mixup:
            part = rng.beta(augment.mixup_beta, augment.mixup_beta)
            other = self._picture(self._any_image(rng), at.unwatched())
            record = at.seen("mixup", mosaic.mix(record, other, part, self.settings.pad_value))
        for change in self.after:
            record = at.seen(name_of(change), change(record, rng))
        return record

    def _picture(self, i: int, at: "_Row") -> Record | None:
        """Image i, alone or in a random mosaic, then moved by a random affine map."""
        augment = self.settings.augment
        if augment.mosaic and at.rng.random() < augment.mosaic:
            return self._mosaic(i, at)
        record = self._small(i, self.resize, at)
        if record is None:
            return None
        size = record["image_size"]
        moved_by = random_map(augment, size, size, at.rng)
        if moved_by is None:
            return record
        return at.seen("affine", self._warp(record, moved_by, size))

    def _mosaic(self, i: int, at: "_Row") -> Record:
        """A part of a mosaic with image i at a random place and random other images."""
        nine = self.settings.augment.mosaic_nine
        place_all, count = mosaic.four, 4
        if nine and at.rng.random() < nine:
            place_all, count = mosaic.nine, 9
        place = int(at.rng.integers(count))
        chosen = [self._any_image(at.rng) for _ in range(count)]
        chosen[place] = i
        tiles = [
            self._small(k, self.resize_tile, at if number == place else at.unwatched())
            for number, k in enumerate(chosen)
        ]
        corners = place_all(tiles, at.canvas, at.rng)
        size = (2 * at.canvas[0], 2 * at.canvas[1])
        moved_by = random_map(self.settings.augment, size, at.canvas, at.rng)
        name = "mosaic" if moved_by is None else "mosaic and affine"
        if moved_by is None:
            moved_by = affine.centred(size, at.canvas)
        seen = affine.window(moved_by, at.canvas, size)
        pad_value = self.settings.pad_value
        plane = mosaic.paste(tiles, corners, size, pad_value, seen, affine.CHANNELS)
        plane = {**plane, "index": tiles[place]["index"]}
        return at.seen(name, self._warp(plane, moved_by, at.canvas))

    def _warp(self, record: Record, moved_by: affine.Map, target: tuple[int, int]) -> Record:
        augment = self.settings.augment
        rule = affine.Rule(augment.box_min_side, augment.box_min_part, augment.box_max_ratio)
        return affine.warp(record, moved_by, target, rule, self.settings.pad_value)

    def _any_image(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.num_images))

    def _small(self, i: int, resize: Resize, at: "_Row") -> Record | None:
        """Image i after changes and resize; the full-size image is not kept."""
        record = self.read(i, at.skipped)
        if record is None:
            return None
        at.seen("image", record)
        for change in self.before:
            record = at.seen(name_of(change), change(record, at.rng))
        return at.seen("resize", resize(record, *at.canvas, **at.limits))


class _Row(NamedTuple):
    """What the images in one row of a step share."""

    canvas: tuple[int, int]  # height, width px
    limits: dict  # keyword arguments of the resize
    rng: np.random.Generator
    skipped: list[str]  # sentences on images that cannot be read
    watch: Watch | None  # see `Augmenter.__call__`

    def seen(self, name: str, record: Record) -> Record:
        """The record, once `watch` has it."""
        if self.watch is not None:
            self.watch(name, record)
        return record

    def unwatched(self) -> "_Row":
        return self._replace(watch=None)


def name_of(change: Change) -> str:
    """The name of the function in `transforms` that made a change, such as "flip_horizontal"."""
    return change.__qualname__.partition(".")[0]


def of(
    settings: settings_lib.Settings,
    read: Callable[[int, list[str]], Record | None],
    num_images: int,
) -> Augmenter:
    """The augmenter for these settings and a source of `num_images`.

    Raises:
      ValueError: a setting has an unknown value, or two settings exclude each other.
    """
    _check(settings)
    tile = settings._replace(resize="fit") if settings.resize == "letterbox" else settings
    before, after = augmentations(settings.augment, settings.pad_value)
    flips = (
        transforms.flip_horizontal(settings.flip_horizontal),
        transforms.flip_vertical(settings.flip_vertical),
    )
    return Augmenter(
        read, num_images, settings, before, resizer(settings), resizer(tile), (*flips, *after)
    )


def resizer(settings: settings_lib.Settings) -> Resize:
    """The function (record, height, width) -> record that `settings.resize` names.

    Raises:
      ValueError: `resize`, `rounding` or `shrink` has an unknown value.
    """
    resize, rounding, shrink = settings.resize, settings.rounding, settings.shrink
    for name, value, known in (
        ("rounding", rounding, transforms.ROUNDINGS),
        ("shrink", shrink, transforms.SHRINKS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    options = dict(pad_value=settings.pad_value, shrink=shrink)
    if resize == "stretch":
        return functools.partial(transforms.resize_fixed, **options)
    options["rounding"] = rounding
    if settings.rectangles and resize != "letterbox":
        return functools.partial(_resize_for_rectangle, settings)
    if resize == "fit":
        return functools.partial(transforms.resize_keep_ratio, **options)
    if resize == "letterbox":
        if settings.rectangles:
            options["longest"] = settings.longest
        return functools.partial(transforms.letterbox, **options)
    if isinstance(resize, str) or len(resize) != 2:
        raise ValueError(
            f'resize is {resize!r}; it must be "fit", "letterbox", "stretch" or (long, short) px'
        )
    return functools.partial(transforms.resize_keep_ratio, limits=tuple(resize), **options)


def _resize_for_rectangle(
    settings: settings_lib.Settings, record: Record, height: int, width: int
) -> Record:
    """Resizes as for a canvas; the rectangle of height x width px has room for the result."""
    sides = plan.fitted_sides(record["image"].shape[:2], settings)
    return transforms.resize_fixed(record, *sides, settings.pad_value, settings.shrink)


def augmentations(
    augment: settings_lib.Augment, pad_value: int | tuple[int, int, int]
) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """The changes before the resize, and those after the flips.

    Changes that `augment` turns off are omitted and draw nothing.
    """
    before, after = [], []
    if augment.photometric:
        before.append(
            transforms.photometric(
                augment.photometric,
                augment.brightness,
                augment.contrast,
                augment.saturation,
                augment.hue,
            )
        )
    if augment.expand:
        before.append(transforms.expand(augment.expand, augment.expand_ratio))
    if augment.crop == "random":
        before.append(transforms.crop_random(augment.crop_probability, augment.crop_size))
    elif augment.crop == "min_iou":
        before.append(transforms.crop_min_iou(augment.crop_min_ious))
    elif augment.crop == "center":
        before.append(
            transforms.crop_center(augment.crop_side, augment.crop_scales, augment.crop_border)
        )
    elif augment.crop == "jitter":
        before.append(transforms.crop_jitter(augment.crop_jitter))
    elif augment.crop != "none":
        crops = "none, random, min_iou, center or jitter"
        raise ValueError(f"crop is {augment.crop!r}; it must be {crops}")
    if augment.hsv:
        after.append(transforms.hsv(augment.hsv, augment.hsv_gains, augment.hsv_form))
    if augment.cutout:
        after.append(
            transforms.cut_out(augment.cutout, augment.cutout_holes, augment.cutout_size, pad_value)
        )
    return tuple(before), tuple(after)


def random_map(
    augment: settings_lib.Augment,
    size: tuple[int, int],
    target: tuple[int, int],
    rng: np.random.Generator,
) -> affine.Map | None:
    """The random map of an image of `size` (height, width) px to `target` px; None: no map."""
    if not augment.affine or rng.random() >= augment.affine:
        return None
    ranges = affine.Ranges(
        augment.affine_degrees,
        augment.affine_translate,
        augment.affine_scale,
        augment.affine_shear,
        augment.affine_perspective,
    )
    return affine.draw(ranges, size, target, rng)


def _check(settings: settings_lib.Settings) -> None:
    multiscale, canvases, resize = settings.multiscale, settings.canvases, settings.resize
    if multiscale.mode not in ("list", "range"):
        raise ValueError(f'multiscale is {multiscale.mode!r}; it must be "list" or "range"')
    if any(len(alternative) != len(canvases) for alternative in multiscale.canvases):
        raise ValueError(
            f"each entry of multiscale_canvases must have {len(canvases)} canvases, one for each "
            "in canvases"
        )
    if multiscale.limits and resize in ("letterbox", "stretch"):
        raise ValueError(f'multiscale_limits cannot be used with resize "{resize}"')

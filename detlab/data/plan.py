"""The plan: which images make which batch.

**The order of images is a pure function.**  For every step of an epoch, the plan gives the canvas
(the fixed size of the batch's images), the images, their random seeds and their scales.  It is the
same on every process; process p reads its share of the rows.  The loader's state is therefore the
step number.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.data import records as records_lib
from detlab.data import settings as settings_lib
from detlab.data import transforms


class Step(NamedTuple):
    """One batch of the plan."""

    canvas: tuple[int, int]  # height, width px
    index: np.ndarray  # [B] int64 position in the source; -1 where not real
    seed: np.ndarray  # [B] int64, for the generator of this image's transforms
    real: np.ndarray  # [B] bool
    limits: np.ndarray | None = None  # [B, 2] int64 long, short px of `resize_keep_ratio`


def source_sizes(source: Any):
    """Sizes [n, 2] int64 height, width of all images of a source."""
    if not len(source):
        raise records_lib.DataError("the data source has no images; check its splits and filters")
    return np.array([source.size(i) for i in range(len(source))], np.int64)


def group_by_canvas(sizes, canvases: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Groups images by the canvas that suits them best.

    That is the canvas on which an image can be largest; ties go to the smallest canvas, then to the
    first.

    Args:
      sizes: [n, 2] height, width of the images.
      canvases: sequence of (height, width).
    Returns:
      One ascending int64 array per canvas; together they hold each of 0..n-1 once.
    """
    scale = (np.asarray(canvases)[None] / np.asarray(sizes)[:, None]).min(axis=2)  # [n, canvases]
    enough = scale >= (1 - 1e-6) * scale.max(axis=1, keepdims=True)
    area = np.asarray(canvases).prod(axis=1)
    best = np.where(enough, area, np.inf).argmin(axis=1)
    return [np.flatnonzero(best == c) for c in range(len(canvases))]


def steps_per_epoch(sizes, batch_size: int, canvases: Sequence[tuple[int, int]]) -> int:
    """Number of batches that show every image at least once, the same for every epoch.

    Args:
      sizes: [n, 2] height, width of the images.
    """
    return sum(-(-len(group) // batch_size) for group in group_by_canvas(sizes, canvases))


def canvas_of(size: tuple[int, int], settings: settings_lib.Settings) -> tuple[int, int]:
    """The smallest canvas of those on which an image of (height, width) px is largest.

    For a letterbox, the rounded sides decide, as in YOLOv5's `detect.py`: 820x1024 px fits on
    512x640.  With `settings.rectangles`, it is `rectangle_of` the image.
    """
    if settings.rectangles:
        return rectangle_of(size, settings)
    if settings.resize != "letterbox":
        groups = group_by_canvas([size], settings.canvases)
        return next(c for c, group in zip(settings.canvases, groups, strict=True) if len(group))

    def smaller_picture_then_larger_canvas(canvas):
        sides = transforms.letterbox_sides(size, canvas, settings.rounding)
        return -math.prod(sides), math.prod(canvas)

    return min(settings.canvases, key=smaller_picture_then_larger_canvas)


def rectangle_of(size: tuple[int, int], settings: settings_lib.Settings) -> tuple[int, int]:
    """The smallest rectangle for an image of (height, width) px, with sides in multiples.

    Of a letterbox without a margin, the rounded sides are rounded up, as in YOLOv5's `detect.py`:
    720x1280 px get 384x640.  With one, it is added to the exact sides first, as in `val.py`:
    384x672.  Otherwise the sides that the image has on its canvas are rounded up, as in mmdetection
    (`size_divisor`), up to those of the canvas.
    """
    longest, step = settings.longest, settings.rectangles
    if settings.resize != "letterbox":
        canvas = canvas_of(size, settings._replace(rectangles=0))
        sides = (step * math.ceil(side / step) for side in fitted_sides(size, settings))
        return tuple(map(min, sides, canvas))
    if settings.margin:
        height, width = size
        # In the reference's order of operations.
        ratio = height / width
        parts = (ratio, 1) if ratio < 1 else (1, 1 / ratio)
        sides = (part * longest / step + settings.margin for part in parts)
    else:
        sides = transforms.letterbox_sides(size, (longest, longest), settings.rounding)
        sides = (side / step for side in sides)
    return tuple(step * math.ceil(side) for side in sides)


def fitted_sides(size: tuple[int, int], settings: settings_lib.Settings) -> tuple[int, int]:
    """(height, width) px of an image on its canvas if `resize` is "fit" or limits."""
    canvas = canvas_of(size, settings._replace(rectangles=0))
    limits = None if settings.resize == "fit" else settings.resize
    return transforms.fit_sides(size, canvas, limits, settings.rounding)


def eval_groups(sizes, settings: settings_lib.Settings) -> list[tuple[tuple[int, int], np.ndarray]]:
    """(canvas, ascending positions of its images) of an evaluation, each image once.

    Args:
      sizes: [n, 2] height, width of the images.
    """
    if not settings.rectangles:
        groups = group_by_canvas(sizes, settings.canvases)
        return list(zip(settings.canvases, groups, strict=True))
    of_canvas = {}
    for i, size in enumerate(np.asarray(sizes).tolist()):
        of_canvas.setdefault(rectangle_of(size, settings), []).append(i)
    return [(canvas, np.array(of_canvas[canvas])) for canvas in sorted(of_canvas)]


def epoch_steps(
    sizes,
    seed: int,
    epoch: int,
    batch_size: int,
    canvases: Sequence[tuple[int, int]],
    multiscale: settings_lib.MultiScale = settings_lib.MultiScale(),
) -> list[Step]:
    """The training steps of one epoch: a pure function of its arguments.

    Images are shuffled within the group of their canvas, and the batches of all groups are
    shuffled together.  The last batch of a group is filled with images of the same group.
    Multi-scale changes sizes only: `canvases` decide the groups, and the order is the same.

    Args:
      sizes: [n, 2] height, width of the images.
    """
    rng = np.random.default_rng([seed, epoch])
    steps = []
    for canvas, group in zip(canvases, group_by_canvas(sizes, canvases), strict=True):
        count = -(-len(group) // batch_size)
        order = np.resize(rng.permutation(group), (count, batch_size))  # repeats from the start
        seeds = rng.integers(0, 2**63, (count, batch_size))
        real = np.ones(batch_size, bool)
        steps += [Step(tuple(canvas), order[k], seeds[k], real) for k in range(count)]
    steps = [steps[k] for k in rng.permutation(len(steps))]
    if multiscale.canvases:
        group = [tuple(canvas) for canvas in canvases]
        chosen = rng.integers(len(multiscale.canvases), size=len(steps))
        alternatives = [multiscale.canvases[c] for c in chosen]
        steps = [
            step._replace(canvas=tuple(alternative[group.index(step.canvas)]))
            for step, alternative in zip(steps, alternatives, strict=True)
        ]
    if multiscale.limits:
        limits = _draw_limits(rng, multiscale, (len(steps), batch_size))
        steps = [step._replace(limits=row) for step, row in zip(steps, limits, strict=True)]
    return steps


def _draw_limits(rng, multiscale, shape):
    """Draws [*shape, 2] int64 long, short px as mmdetection's `Resize` draws its `img_scale`."""
    limits = np.array(multiscale.limits)
    if multiscale.mode == "list":
        return limits[rng.integers(len(limits), size=shape)]
    drawn = rng.integers(limits.min(axis=0), limits.max(axis=0) + 1, (*shape, 2))
    return np.sort(drawn)[..., ::-1]  # if the ranges overlap, long may be below short


def evaluation_steps(sizes, batch_size: int, settings: settings_lib.Settings) -> list[Step]:
    """The evaluation steps: every image once, in order, canvas by canvas.

    Args:
      sizes: [n, 2] height, width of the images.
    """
    steps = []
    for canvas, group in eval_groups(sizes, settings):
        for start in range(0, len(group), batch_size):
            index = np.full(batch_size, -1)
            part = group[start : start + batch_size]
            index[: len(part)] = part
            steps.append(Step(tuple(canvas), index, np.zeros(batch_size, np.int64), index >= 0))
    return steps


class Epochs:
    """Step number -> `Step`; keeps the plans of two epochs at a time."""

    def __init__(self, sizes, seed, batch_size, canvases, multiscale):
        self._make_plan = functools.partial(
            epoch_steps,
            sizes,
            seed,
            batch_size=batch_size,
            canvases=canvases,
            multiscale=multiscale,
        )
        self._length = steps_per_epoch(sizes, batch_size, canvases)
        self._plans = {}

    def __call__(self, step):
        epoch, k = divmod(step, self._length)
        steps = self._plans.get(epoch)
        if steps is None:
            # Near the end of an epoch, threads ask for two plans.  A race makes one of them twice.
            steps = self._make_plan(epoch)
            self._plans = {epoch: steps} | {
                e: p for e, p in self._plans.items() if abs(e - epoch) == 1
            }
        return steps[k]


def rows_of(batch_size: int, process_index: int, process_count: int) -> slice:
    """The slice of the global batch's rows that a process makes.

    Raises:
      ValueError: the batch cannot be split evenly over the processes.
    """
    if batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} images cannot be split evenly over {process_count} processes"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)

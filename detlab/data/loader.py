"""The loader: source -> plan -> grain -> `Batch`.

**The order of images is a pure function.**  `plan` says for every step of an epoch which canvas
(the fixed size of the batch's images), which images with which random seeds and which scales make
the batch, the same on every process; process p reads its share of the rows.  The loader's state is
therefore the number of the step: `start_step` alone resumes it, whatever the number of threads,
worker processes or machines was or will be.

Grain only carries the plan out: it maps steps to batches in threads or worker processes.
"""

import functools
import signal
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags

from detlab import types
from detlab.data import affine
from detlab.data import mosaic
from detlab.data import records as records_lib
from detlab.data import transforms

_REPLACEMENTS = 20  # images tried in the place of one that cannot be read


class Step(NamedTuple):
    """One batch of the plan."""

    canvas: tuple[int, int]  # height, width px
    index: np.ndarray  # [B] int64 position in the source; -1 where not real
    seed: np.ndarray  # [B] int64, of the generator that the transforms of this image get
    real: np.ndarray  # [B] bool
    limits: np.ndarray | None = None  # [B, 2] int64 long, short px of `resize_keep_ratio`


class MultiScale(NamedTuple):
    """What the plan draws besides the order: nothing by default."""

    canvases: tuple = ()  # alternatives to the canvases, each of as many; a step draws one
    limits: tuple = ()  # alternatives of (long, short) px; an image draws one
    mode: str = "list"  # "list": one of `limits`; "range": each side from its least to its largest


class Augment(NamedTuple):
    """What changes a picture at random, besides flips; `config.data.augment` has the same keys."""

    photometric: float = 0.0  # probability
    brightness: float = 32.0  # at most, of 255
    contrast: float = 0.5  # factor 1 - 0.5 .. 1 + 0.5
    saturation: float = 0.5
    hue: float = 18.0  # degrees
    expand: float = 0.0  # probability
    expand_ratio: float = 4.0  # at most
    crop: str = "none"  # "none", "random", "min_iou", "center" or "jitter"
    crop_probability: float = 1.0  # of "random"
    crop_size: tuple[float, float] = (0.3, 1.0)  # least and largest part of a side; "random"
    crop_min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    crop_side: int = 511  # px; "center"
    crop_scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    crop_border: int = 128  # px
    crop_jitter: float = 0.3  # part of a side; "jitter"
    mosaic: float = 0.0  # probability
    mosaic_nine: float = 0.0  # part of the mosaics
    affine: float = 0.0  # probability
    affine_degrees: float = 0.0
    affine_translate: float = 0.1  # part of a side
    affine_scale: float = 0.5  # factor 1 - 0.5 .. 1 + 0.5
    affine_shear: float = 0.0  # degrees
    affine_perspective: float = 0.0
    box_min_side: float = 2.0  # px
    box_min_part: float = 0.1
    box_max_ratio: float = 100.0
    mixup: float = 0.0  # probability
    mixup_beta: float = 32.0
    hsv: float = 0.0  # probability
    hsv_gains: tuple[float, float, float] = (0.015, 0.7, 0.4)
    hsv_form: str = "yolov5"  # or "darknet"
    cutout: float = 0.0  # probability
    cutout_holes: tuple[int, int] = (1, 5)  # least and largest number
    cutout_size: tuple[float, float] = (0.05, 0.2)  # least and largest part of a side


class Loaded(NamedTuple):
    """One batch, with what was lost while making it, for the log."""

    batch: types.Batch
    dropped_boxes: int  # objects for which the batch had no slot
    skipped: tuple[str, ...]  # a sentence for each image that could not be read


# ------------------------------------------------------------------------------------------------
# The plan


def source_sizes(source):
    """[n, 2] int64 (height, width) of all images of a source."""
    if not len(source):
        raise records_lib.DataError("the data source has no images; look at its split and filters")
    return np.array([source.size(i) for i in range(len(source))], np.int64)


def group_by_canvas(sizes, canvases):
    """For each canvas, the images it suits best.

    That is where they can be largest; of equals the smallest canvas, and of these the first.

    Args:
      sizes: [n, 2] height, width of the images.
      canvases: sequence of (height, width).
    Returns:
      list of increasing int64 arrays, one a canvas, that hold each of 0..n-1 once.
    """
    scale = (np.asarray(canvases)[None] / np.asarray(sizes)[:, None]).min(axis=2)  # [n, canvases]
    enough = scale >= (1 - 1e-6) * scale.max(axis=1, keepdims=True)
    area = np.asarray(canvases).prod(axis=1)
    best = np.where(enough, area, np.inf).argmin(axis=1)
    return [np.flatnonzero(best == c) for c in range(len(canvases))]


def steps_per_epoch(sizes, batch_size, canvases):
    """Batches that show every image at least once; the same for every epoch."""
    return sum(-(-len(group) // batch_size) for group in group_by_canvas(sizes, canvases))


def plan(sizes, seed, epoch, batch_size, canvases, multiscale=MultiScale()):
    """The training steps of one epoch: a list of `Step`, a pure function of its arguments.

    Images are shuffled within the group of their canvas, and the batches of all groups are
    shuffled together.  The last batch of a group is filled with images of the same group.
    Multi-scale changes sizes only: `canvases` decide the groups, and the order is the same.
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
    """int64 [*shape, 2] long, short px, as mmdetection's `Resize` draws its `img_scale`."""
    limits = np.array(multiscale.limits)
    if multiscale.mode == "list":
        return limits[rng.integers(len(limits), size=shape)]
    drawn = rng.integers(limits.min(axis=0), limits.max(axis=0) + 1, (*shape, 2))
    return np.sort(drawn)[..., ::-1]  # ranges that overlap may give a long below the short


def eval_plan(sizes, batch_size, canvases):
    """The evaluation steps: every image once, in order, canvas by canvas; a list of `Step`."""
    steps = []
    for canvas, group in zip(canvases, group_by_canvas(sizes, canvases), strict=True):
        for start in range(0, len(group), batch_size):
            index = np.full(batch_size, -1)
            part = group[start : start + batch_size]
            index[: len(part)] = part
            steps.append(Step(tuple(canvas), index, np.zeros(batch_size, np.int64), index >= 0))
    return steps


# ------------------------------------------------------------------------------------------------
# Records to a batch


def to_batch(records, canvas, max_boxes, pad_value):
    """A `types.Batch` of NumPy arrays from records that fit on the canvas.

    An image with more than `max_boxes` objects keeps the largest, and real ones before ignored
    ones; `count_dropped` tells how many that loses.  A record None gives a row that is not real:
    an empty canvas.

    Args:
      records: list of B transformed records, or None.
      canvas: (height, width) px.
      max_boxes: G, slots for objects.
      pad_value: 0..255 outside the content, one number or one for each of R, G, B.
    """
    shape = (len(records), max_boxes)
    batch = types.Batch(
        images=np.empty((len(records), *canvas, 3), np.uint8),
        boxes=np.zeros((*shape, 4), np.float32),
        labels=np.zeros(shape, np.int32),
        valid=np.zeros(shape, bool),
        ignore=np.zeros(shape, bool),
        image_size=np.full((len(records), 2), canvas, np.int32),
        placement=np.tile(np.array([1, 1, 0, 0], np.float32), (len(records), 1)),
        index=np.full(len(records), -1, np.int32),
        real=np.array([record is not None for record in records]),
    )
    for row, record in enumerate(records):
        if record is None:
            batch.images[row] = pad_value
            continue
        record = transforms.pad(record, canvas, pad_value)
        batch.images[row] = record["image"]
        batch.image_size[row] = record["image_size"]
        batch.placement[row] = record["placement"]
        batch.index[row] = record["index"]
        keep = _largest(record, max_boxes)
        batch.boxes[row, : len(keep)] = record["boxes"][keep]
        batch.labels[row, : len(keep)] = record["labels"][keep]
        batch.valid[row, : len(keep)] = ~record["ignore"][keep]
        batch.ignore[row, : len(keep)] = record["ignore"][keep]
    return batch


def count_dropped(records, max_boxes):
    """How many objects of the records `to_batch` has no slot for."""
    return sum(max(len(record["boxes"]) - max_boxes, 0) for record in records if record)


def _largest(record, count):
    """Positions, in order, of the `count` largest objects; all real ones count as larger."""
    width, height = (record["boxes"][:, 2:] - record["boxes"][:, :2]).T
    order = np.lexsort((-width * height, record["ignore"]))  # the last key is the first to decide
    return np.sort(order[:count])


# ------------------------------------------------------------------------------------------------
# The streams


def train_batches(
    source,
    *,
    batch_size,
    canvases,
    seed,
    max_boxes,
    pad_value,
    num_steps,
    start_step=0,
    resize="fit",
    rounding="half_up",
    shrink="linear",
    multiscale=MultiScale(),
    augment=Augment(),
    flip_horizontal=0.5,
    flip_vertical=0.0,
    skip_broken=True,
    process_index=0,
    process_count=1,
    read_threads=2,
    prefetch=4,
    workers=0,
):
    """Iterator of `Loaded` for the steps start_step..num_steps-1 of a training run.

    The stream from a later `start_step` is the tail of the stream from 0, bit for bit.

    Args:
      source: see `detlab.data.records`.
      batch_size: images in the global batch.
      canvases: (height, width) px of the batches; each image goes to the one that suits it.
      seed: decides order, flips and all else that is random.
      max_boxes, pad_value: see `to_batch`.
      num_steps: steps of the whole run; epochs follow one another.
      resize: "fit" for the largest picture of the same ratio on the canvas, "letterbox" for the
        same in the middle, "stretch" to fill the canvas, or (long, short) px, limits on the sides
        in addition to "fit".
      rounding, shrink: of the resizing, see `transforms.resize_keep_ratio`.
      multiscale: `MultiScale`; its limits take the place of those of `resize`.
      augment: `Augment`.
      flip_horizontal, flip_vertical: probabilities.
      skip_broken: replace an image that cannot be read by the next of the same canvas, and tell
        so in `Loaded.skipped`; False raises.
      process_index, process_count: this process makes its part of the rows of each batch.
      read_threads, prefetch, workers: threads (0 reads when asked), batches made ahead, and worker
        processes (0 for none; each is spawned, so a script needs `if __name__ == "__main__"`).
    Raises:
      ValueError: the batch cannot be shared out, `resize`, `rounding`, `shrink` or a part of
        `augment` or `multiscale` is none of the above, or there are limits and `resize` does not
        keep to them.
      DataError: from the iterator: an image cannot be read, nor can those tried in its place.
    """
    _check_multiscale(multiscale, canvases, resize)
    sizes = source_sizes(source)
    before, after = augmentations(augment, pad_value)
    flips = transforms.flip_horizontal(flip_horizontal), transforms.flip_vertical(flip_vertical)
    rule = dict(pad_value=pad_value, rounding=rounding, shrink=shrink)
    make = _MakeBatch(
        source=source,
        plan=_Epochs(sizes, seed, batch_size, canvases, multiscale),
        rows=_rows(batch_size, process_index, process_count),
        augment=augment,
        before=before,
        resize=resizer(resize, **rule),
        resize_tile=resizer("fit" if resize == "letterbox" else resize, **rule),
        after=(*flips, *after),
        max_boxes=max_boxes,
        pad_value=pad_value,
        groups=tuple(group_by_canvas(sizes, canvases)) if skip_broken else (),
        leave_broken_out=False,
    )
    return _stream(make, range(start_step, num_steps), read_threads, prefetch, workers)


def eval_batches(
    source,
    *,
    batch_size,
    canvases,
    max_boxes,
    pad_value,
    resize="fit",
    rounding="half_up",
    shrink="linear",
    skip_broken=False,
    process_index=0,
    process_count=1,
    read_threads=2,
    prefetch=4,
    workers=0,
):
    """Iterator of `Loaded` that shows every image once, unflipped, in an order always the same.

    Rows that fill up the last batch of a canvas have `real` False.  The arguments are those of
    `train_batches`, except

      skip_broken: an image that cannot be read gives a row with `real` False and a sentence in
        `Loaded.skipped`; no other image takes its place, as each counts once.
    Raises:
      ValueError: the batch cannot be shared out, or `resize`, `rounding` or `shrink` is unknown.
      DataError: from the iterator, without `skip_broken`: an image cannot be read.
    """
    steps = eval_plan(source_sizes(source), batch_size, canvases)
    make = _MakeBatch(
        source=source,
        plan=steps.__getitem__,
        rows=_rows(batch_size, process_index, process_count),
        augment=Augment(),
        before=(),
        resize=resizer(resize, pad_value, rounding, shrink),
        resize_tile=None,
        after=(),
        max_boxes=max_boxes,
        pad_value=pad_value,
        groups=(),
        leave_broken_out=skip_broken,
    )
    return _stream(make, range(len(steps)), read_threads, prefetch, workers)


class _Epochs:
    """Step number -> `Step`, through the plans of two epochs at a time."""

    def __init__(self, sizes, seed, batch_size, canvases, multiscale):
        self._make_plan = functools.partial(
            plan,
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
            # Threads near the end of an epoch ask for two.  A race costs a plan made twice.
            steps = self._make_plan(epoch)
            self._plans = {epoch: steps} | {
                e: p for e, p in self._plans.items() if abs(e - epoch) == 1
            }
        return steps[k]


class _MakeBatch(NamedTuple):
    """Step number -> `Loaded`: what grain's threads and workers run."""

    source: object
    plan: object  # step number -> Step
    rows: slice  # of the global batch, for this process
    augment: Augment
    before: tuple  # of (record, rng) -> record
    resize: object  # (record, height, width) -> record
    resize_tile: object  # the same for a part of a mosaic
    after: tuple  # of (record, rng) -> record
    max_boxes: int
    pad_value: object
    groups: tuple  # images by canvas, to replace broken ones from; empty: none is replaced
    leave_broken_out: bool  # a row that is not real in place of an image that cannot be read

    def __call__(self, step):
        planned = self.plan(step)
        skipped = []
        rows = range(len(planned.index))[self.rows]
        records = [self._record(planned, row, skipped) for row in rows]
        batch = to_batch(records, planned.canvas, self.max_boxes, self.pad_value)
        return Loaded(batch, count_dropped(records, self.max_boxes), tuple(skipped))

    def _read(self, i, skipped):
        """Record i, or the next of its group that can be read; the faults go to `skipped`.

        None where there is to be no record: i is -1, or broken and left out.
        """
        if i < 0:
            return None
        faults = []
        for candidate in self._candidates(i):
            try:
                record = self.source[candidate]
            except records_lib.DataError as error:
                faults.append(error)
            else:
                skipped += [str(fault) for fault in faults]
                return record
        if self.leave_broken_out:
            skipped += [str(fault) for fault in faults]
            return None
        if len(faults) == 1:
            raise faults[0]
        raise records_lib.DataError(
            f"{len(faults)} images in a row cannot be read, the first because: {faults[0]}"
        )

    def _candidates(self, i):
        yield i
        for group in self.groups:
            at = np.searchsorted(group, i)
            if at < len(group) and group[at] == i:
                yield from np.roll(group, -at)[1 : 1 + _REPLACEMENTS].tolist()

    def _record(self, planned, row, skipped):
        """The transformed record of a row of the step; None where there is to be none."""
        rng = np.random.default_rng(int(planned.seed[row]))
        limits = {} if planned.limits is None else {"limits": planned.limits[row].tolist()}
        at = _Row(planned.canvas, limits, rng, skipped)
        record = self._picture(int(planned.index[row]), at)
        if record is None:
            return None
        augment = self.augment
        if augment.mixup and rng.random() < augment.mixup:
            part = rng.beta(augment.mixup_beta, augment.mixup_beta)
            other = self._picture(self._any_image(rng), at)
            record = mosaic.mix(record, other, part, self.pad_value)
        for change in self.after:
            record = change(record, rng)
        return record

    def _picture(self, i, at):
        """Image i resized or, by chance, in a mosaic; moved by the affine map, by chance too."""
        augment = self.augment
        if augment.mosaic and at.rng.random() < augment.mosaic:
            return move(self._mosaic(i, at), at.canvas, augment, self.pad_value, at.rng)
        record = self._small(i, self.resize, at)
        if record is None:
            return None
        return move(record, record["image_size"], augment, self.pad_value, at.rng)

    def _mosaic(self, i, at):
        """The plane of a mosaic of image i, in any place of it, and others of the source."""
        make, count = mosaic.four, 4
        if self.augment.mosaic_nine and at.rng.random() < self.augment.mosaic_nine:
            make, count = mosaic.nine, 9
        place = int(at.rng.integers(count))
        chosen = [self._any_image(at.rng) for _ in range(count)]
        chosen[place] = i
        tiles = [self._small(k, self.resize_tile, at) for k in chosen]
        plane = make(tiles, at.canvas, at.rng, self.pad_value)
        return {**plane, "index": tiles[place]["index"]}

    def _any_image(self, rng):
        return int(rng.integers(len(self.source)))

    def _small(self, i, resize, at):
        """Image i, changed and resized; nothing of its own size is kept."""
        record = self._read(i, at.skipped)
        if record is None:
            return None
        for change in self.before:
            record = change(record, at.rng)
        return resize(record, *at.canvas, **at.limits)


class _Row(NamedTuple):
    """What the pictures of one row of a step have in common."""

    canvas: tuple[int, int]  # height, width px
    limits: dict  # arguments of the resize
    rng: np.random.Generator
    skipped: list  # sentences on images that cannot be read


def _rows(batch_size, process_index, process_count):
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} images cannot be shared by {process_count}")
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def resizer(resize, pad_value, rounding="half_up", shrink="linear"):
    """(record, height, width) -> record, as `train_batches` describes `resize`."""
    for name, value, known in (
        ("rounding", rounding, transforms.ROUNDINGS),
        ("shrink", shrink, transforms.SHRINKS),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")
    options = dict(pad_value=pad_value, shrink=shrink)
    if resize == "stretch":
        return functools.partial(transforms.resize_fixed, **options)
    options["rounding"] = rounding
    if resize == "fit":
        return functools.partial(transforms.resize_keep_ratio, **options)
    if resize == "letterbox":
        return functools.partial(transforms.letterbox, **options)
    if isinstance(resize, str) or len(resize) != 2:
        raise ValueError(
            f'resize {resize!r} is neither "fit" nor "letterbox" nor "stretch" nor (long, short) px'
        )
    return functools.partial(transforms.resize_keep_ratio, limits=tuple(resize), **options)


def augmentations(augment, pad_value):
    """Two tuples of (record, rng) -> record: before the resizing and after the flips.

    What `augment` has turned off is not in them and draws nothing.
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
        crops = "none, random, min_iou, center nor jitter"
        raise ValueError(f"crop {augment.crop!r} is neither {crops}")
    if augment.hsv:
        after.append(transforms.hsv(augment.hsv, augment.hsv_gains, augment.hsv_form))
    if augment.cutout:
        after.append(
            transforms.cut_out(augment.cutout, augment.cutout_holes, augment.cutout_size, pad_value)
        )
    return tuple(before), tuple(after)


def move(record, target, augment, pad_value, rng):
    """A resized picture or the plane of a mosaic in `target` (height, width) px, moved by chance.

    What is not moved is the record itself or, of a plane, the middle.
    """
    size = record["image"].shape[:2]
    if augment.affine and rng.random() < augment.affine:
        ranges = affine.Ranges(
            augment.affine_degrees,
            augment.affine_translate,
            augment.affine_scale,
            augment.affine_shear,
            augment.affine_perspective,
        )
        moved_by = affine.draw(ranges, size, target, rng)
    elif size == tuple(target):
        return record
    else:
        moved_by = affine.centred(size, target)
    rule = affine.Rule(augment.box_min_side, augment.box_min_part, augment.box_max_ratio)
    return affine.warp(record, moved_by, target, rule, pad_value)


def _check_multiscale(multiscale, canvases, resize):
    if multiscale.mode not in ("list", "range"):
        raise ValueError(f'multi-scale mode {multiscale.mode!r} is neither "list" nor "range"')
    if any(len(alternative) != len(canvases) for alternative in multiscale.canvases):
        raise ValueError(f"each alternative to {len(canvases)} canvases must have as many")
    if multiscale.limits and resize in ("letterbox", "stretch"):
        raise ValueError(f'multi-scale limits do not go with resize "{resize}"')


def _stream(make, steps, read_threads, prefetch, workers):
    import grain  # here, so that programs start without it

    cv2.setNumThreads(1)  # OpenCV's own threads get in the way of those that share the work here
    options = grain.ReadOptions(
        num_threads=read_threads, prefetch_buffer_size=max(prefetch, read_threads)
    )
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which may be unparsed
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), _start_worker
        )
    return iter(dataset)


def _start_worker(*_):
    """What each worker process does first."""
    cv2.setNumThreads(1)
    # A terminal's Ctrl-C and a scheduler's SIGTERM reach all processes; the parent, which may still
    # need batches, decides what they mean, and ends these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

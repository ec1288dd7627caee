"""The loader: source -> plan -> records -> `Batch`, run by grain.

`start_step` alone resumes a stream, whatever the number of threads, worker processes or machines:
the plan is a pure function (see `detlab.data.plan`), and grain only carries it out.  Grain maps
steps to batches in threads or worker processes.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import flags

from detlab.data import augment, plan
from detlab.data import batch as batch_lib
from detlab.data import records as records_lib
from detlab.data import settings as settings_lib

_REPLACEMENTS = 20  # images tried in place of one that cannot be read
_PREFETCH = 4  # least number of batches made ahead


def train_batches(
    source: Any,
    settings: settings_lib.Settings,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[batch_lib.Loaded]:
    """The batches of steps start_step..num_steps-1 of a training run.

    The stream from a later `start_step` is the tail of the stream from 0, bit for bit.  With
    `skip_broken`, the next image of the same canvas replaces an image that cannot be read.

    Args:
      source: see `detlab.data.records`.
      settings: see `detlab.data.settings`.
      batch_size: images in the global batch.
      seed: determines the order, the flips and everything else that is random.
      num_steps: steps of the whole run, over all epochs.
      start_step: steps already done; the stream starts after them.
      process_index, process_count: this process makes its share of each batch's rows.
    Raises:
      ValueError: the batch cannot be split evenly over the processes, or a setting is invalid.
      DataError: from the iterator: an image cannot be read, and neither can its replacements.
    """
    sizes, canvases = plan.source_sizes(source), settings.canvases
    groups = plan.group_by_canvas(sizes, canvases) if settings.skip_broken else ()
    read = Reader(source, tuple(groups), leave_out=False)
    make = _MakeBatch(
        plan.Epochs(sizes, seed, batch_size, canvases, settings.multiscale),
        plan.rows_of(batch_size, process_index, process_count),
        augment.of(settings, read, len(source)),
        settings,
    )
    return _stream(make, range(start_step, num_steps), settings)


def eval_batches(
    source: Any,
    settings: settings_lib.Settings,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[batch_lib.Loaded]:
    """Batches that contain every image once, without augmentation, always in the same order.

    Rows that pad the last batch of a canvas have `real` False.  With `skip_broken`, the rows of
    images that cannot be read do too; other images do not replace them, because each image counts
    once.  The arguments are those of `train_batches`.

    Raises:
      ValueError: the batch cannot be split evenly over the processes, or a setting is invalid.
      DataError: from the iterator, without `skip_broken`: an image cannot be read.
    """
    settings = settings_lib.without_chance(settings)
    steps = plan.evaluation_steps(plan.source_sizes(source), batch_size, settings)
    read = Reader(source, (), leave_out=settings.skip_broken)
    make = _MakeBatch(
        steps.__getitem__,
        plan.rows_of(batch_size, process_index, process_count),
        augment.of(settings, read, len(source)),
        settings,
    )
    return _stream(make, range(len(steps)), settings)


class _MakeBatch(NamedTuple):
    """Step number -> `Loaded`: what grain's threads and workers run."""

    plan: Callable[[int], plan.Step]
    rows: slice  # of the global batch, for this process
    augmenter: augment.Augmenter
    settings: settings_lib.Settings

    def __call__(self, step: int) -> batch_lib.Loaded:
        planned, skipped = self.plan(step), []
        rows = range(len(planned.index))[self.rows]
        records = [self.augmenter(planned, row, skipped) for row in rows]
        max_boxes, pad_value = self.settings.max_boxes, self.settings.pad_value
        dtype = self.settings.dtype
        batch = batch_lib.to_batch(records, planned.canvas, max_boxes, pad_value, dtype)
        return batch_lib.Loaded(batch, batch_lib.count_dropped(records, max_boxes), tuple(skipped))


class Reader(NamedTuple):
    """Reads records of a source, and replaces those that cannot be read."""

    source: Any
    groups: tuple[np.ndarray, ...]  # by canvas, to replace broken images; empty: no replacement
    leave_out: bool  # return None for an image that cannot be read

    def __call__(self, i: int, skipped: list[str]) -> augment.Record | None:
        """Record i, or the next of its group that can be read; the faults go to `skipped`.

        None if i is -1, or if image i is broken and `leave_out` is set.
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
        if self.leave_out:
            skipped += [str(fault) for fault in faults]
            return None
        if len(faults) == 1:
            raise faults[0]
        raise records_lib.DataError(
            f"{len(faults)} images in a row cannot be read; the first: {faults[0]}"
        )

    def _candidates(self, i: int) -> Iterator[int]:
        yield i
        for group in self.groups:
            at = np.searchsorted(group, i)
            if at < len(group) and group[at] == i:
                yield from np.roll(group, -at)[1 : 1 + _REPLACEMENTS].tolist()


def _stream(make: _MakeBatch, steps: range, settings: settings_lib.Settings):
    import grain  # here, so that programs start without it

    cv2.setNumThreads(1)  # OpenCV's threads would compete with the loader's
    options = grain.ReadOptions(
        num_threads=settings.read_threads,
        prefetch_buffer_size=max(_PREFETCH, settings.read_threads),
    )
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(options)
    if settings.workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which may be unparsed
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=settings.workers), _start_worker
        )
    return iter(dataset)


def _start_worker(*_):
    """Runs first in each worker process."""
    cv2.setNumThreads(1)
    # A terminal's Ctrl-C and a scheduler's SIGTERM reach all processes.  The parent may still need
    # batches: it decides how to react, and it ends the workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

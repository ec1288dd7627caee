"""One training step on the devices, and reading its metrics.

`TrainStep` compiles `detlab.run.update` once per canvas; `MetricReader` reads the metrics of a step
while the next one runs.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from detlab import distributed, errors, sharding, types
from detlab.data import batch as batch_lib
from detlab.run import log as log_lib
from detlab.run import optim
from detlab.run import update as update_lib


class Notes(NamedTuple):
    """What only one process knows about a step; the compiled step sums it over all processes."""

    stop: int = 0  # 1: the process was told to stop
    dropped_boxes: int = 0
    skipped_images: int = 0


class TrainStep:
    """(TrainState, Loaded, whether to stop) -> (TrainState, metrics, Notes of all processes).

    Compilation runs in the context `not_training()`, so that a log can exclude its time.

    Attributes:
      compiled: canvas (height, width) px -> its compiled program.
    """

    def __init__(
        self,
        detector,
        optimizer: optim.Optimizer,
        config,
        mesh,
        not_training: Callable = contextlib.nullcontext,
    ):
        self._mesh = mesh
        self._not_training = not_training
        self.compiled = {}
        self.compile_seconds = 0.0

        update = update_lib.of(detector, optimizer, config)

        def step(state: types.TrainState, batch: types.Batch, notes: jax.Array):
            state, metrics = update(state, batch)
            return state, metrics, Notes(*notes.sum(axis=0))

        self._step = jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated(mesh))

    def prepared(
        self, batches: Iterable[batch_lib.Loaded], state: types.TrainState
    ) -> Iterator[batch_lib.Loaded]:
        """The batches, after compiling for the first of them, if any; `state` may be its shapes."""
        batches = iter(batches)
        for first in batches:
            self._program(state, *self._inputs(first, stop=False))
            return itertools.chain([first], batches)
        return batches

    def __call__(self, state: types.TrainState, loaded: batch_lib.Loaded, stop: bool = False):
        batch, notes = self._inputs(loaded, stop)
        return self._program(state, batch, notes)(state, batch, notes)

    def _inputs(self, loaded: batch_lib.Loaded, stop: bool) -> tuple[types.Batch, jax.Array]:
        notes = np.zeros((len(loaded.batch.images), len(Notes._fields)), np.int32)
        notes[0] = Notes(stop, loaded.dropped_boxes, len(loaded.skipped))  # summed over the rows
        return sharding.put_batch((loaded.batch, notes), self._mesh)

    def _program(self, state: types.TrainState, batch: types.Batch, notes: jax.Array):
        canvas = batch.images.shape[1:3]
        if canvas not in self.compiled:
            with self._not_training():
                self.compiled[canvas] = self._compile(state, batch, notes)
        return self.compiled[canvas]

    def lower(self, state: types.TrainState, batch: types.Batch, notes: jax.Array):
        """The step, traced and lowered for arrays or their shapes; notes: [B, 3] int32."""
        with jax.set_mesh(self._mesh):  # needed by sharding.per_device
            return self._step.lower(state, batch, notes)

    def _compile(self, state: types.TrainState, batch: types.Batch, notes: jax.Array):
        start = time.time()
        compiled = self.lower(state, batch, notes).compile()
        seconds = time.time() - start
        self.compile_seconds += seconds
        height, width = batch.images.shape[1:3]
        tqdm.tqdm.write(f"compiled the train step for {height}x{width} in {seconds:.1f} s")
        return compiled


class MetricReader:
    """Reads the metrics of a step while the next one runs, to keep the device busy.

    `flush` reads the last ones.  Call it before saving, so that a non-finite state is never saved.
    """

    def __init__(self, log: log_lib.RunLog, source, stop: distributed.StopSignals):
        self._log, self._source, self._stop = log, source, stop
        self._unread = None

    def push(self, step: int, metrics: dict[str, Any], notes: Notes, batch: types.Batch) -> None:
        self.flush()
        self._unread = step, metrics, notes, batch

    def flush(self) -> None:
        if self._unread is None:
            return
        step, metrics, notes, batch = self._unread
        self._unread = None
        notes = Notes(*map(int, jax.device_get(notes)))
        self._stop.agree(notes.stop > 0)
        self._log.lost(notes.dropped_boxes, notes.skipped_images)
        self._log.step(check_finite(step, metrics, batch, self._source))


def check_finite(
    step: int, metrics: dict[str, Any], batch: types.Batch, source: Any
) -> dict[str, float]:
    """Converts the metrics to floats.

    Raises:
      UserError: the loss, its gradient or a parameter is not finite.
    """
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    norms = ("grad_norm", "param_norm")
    if all(math.isfinite(values[k]) for k in ("loss", *norms)):
        return values
    terms = ", ".join(f"{k} {v:g}" for k, v in values.items() if k.startswith("loss") or k in norms)
    images = ", ".join(str(source.image_id(int(i))) for i in batch.index if i >= 0)
    raise errors.UserError(
        f"step {step} gave non-finite values ({terms}) on images {images}. The last checkpoint is"
        " kept. Try a lower config.optim.lr, a longer warm-up or config.optim.clip_norm."
    )

"""A profile of some steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import pathlib

import jax
import tqdm

from detlab import distributed, errors, types


class Profiler:
    """Traces `steps` steps, beginning with the second of this start because the first compiles.

    Other work between these steps, such as an evaluation or compilation for another canvas, is
    traced too.  If the context ends early, such as after a signal, the trace so far is written.
    """

    def __init__(self, folder: pathlib.Path, steps: int, first: int):
        """`first` is the step that this start resumes from; writes `folder`/plugins/profile/..."""
        self._folder = folder
        self._begin = first + 2
        self._end = self._begin + steps
        self._wanted = steps > 0 and distributed.is_first()
        self._running = self._begun = False

    def step(self, step: int, state: types.TrainState) -> None:
        """Starts or stops the trace; call it before step `step`, which updates `state`.

        Raises:
          UserError: the trace cannot be written.
        """
        if step == self._begin and self._wanted:
            jax.block_until_ready(state)
            self._running = self._begun = True
            self._try(lambda: jax.profiler.start_trace(self._folder))
        elif step == self._end and self._running:
            jax.block_until_ready(state)
            self._stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:
            self._stop()
        elif self._wanted and not self._begun:
            tqdm.tqdm.write("profile:      none, because this start ran fewer than two steps")

    def _stop(self) -> None:
        self._running = False
        self._try(jax.profiler.stop_trace)
        tqdm.tqdm.write(
            f"profile:      {self._folder} (open *.trace.json.gz with https://ui.perfetto.dev)"
        )

    def _try(self, call) -> None:
        try:
            call()
        except OSError as error:
            self._running = False
            raise errors.UserError(
                f"cannot write the profile into {self._folder}: {error.strerror or error}; fix that"
                " or train without --profile."
            ) from error

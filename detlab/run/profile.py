"""A profile of some steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import pathlib

import jax

from detlab import distributed


class Profiler:
    """Traces `steps` steps, from the second one of this start on: the first also compiles.

    At the end of the context, such as when a signal stops the run, it writes what it has.
    """

    def __init__(self, folder: pathlib.Path, steps: int, first: int):
        """`first` is the step that this start goes on from; the folder gets plugins/profile/..."""
        self._folder = folder
        self._begin = first + 2
        self._end = self._begin + steps
        self._running = False

    def step(self, step: int, state) -> None:
        """Comes before step `step` starts; `state` is what it starts from."""
        if step == self._begin < self._end and distributed.is_first():
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._end and self._running:
            jax.block_until_ready(state)
            self._stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        print(f"profile:      {self._folder} (open *.trace.json.gz with https://ui.perfetto.dev)")

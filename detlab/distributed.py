"""Several processes, each with its own devices, that work as one; see docs/scaling.md.

Every process runs the same program on its own rows of each batch.  What one of them alone knows and
all must act on, such as a signal, travels with the batch through the compiled step, so that all
learn it at the same step and none waits for one that has stopped.
"""

import argparse
import ctypes
import functools
import json
import os
import signal
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from detlab import errors, sharding

HEARTBEAT_S = 60  # a process that is silent for so long counts as ended
JOIN_S = 300  # to wait for all processes to start
LEAVE_S = 1800  # to wait at the end for the first one, which draws and writes

_NOT_ALL_CAME = (
    f"not all processes of this run came within {JOIN_S} s; start all of them, with the same"
    " --coordinator and --num_processes and each with its own --process_id, and see that the host"
    " and port of the coordinator can be reached"
)
_PEER_ENDED = (
    "another process of this run has ended or cannot be reached: its own output says why.  The last"
    " checkpoint is kept; start all processes again with the same command to resume"
)
# Words of the errors that gloo, NCCL and jax's coordination raise when a connection breaks.
_BROKEN = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")


def join(args: argparse.Namespace) -> None:
    """Joins the processes of the run; nothing without `--distributed`.

    Slurm, Open MPI and TPU pods say who is who; elsewhere the three flags do.  It comes before the
    first use of a device.

    Raises:
      UserError: flags that do not go together, or not all processes came.
    """
    place = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed:
        if place != (None, None, None):
            raise errors.UserError(
                "--coordinator, --num_processes and --process_id go with --distributed; add it."
            )
        return
    if None in place and place != (None, None, None):
        raise errors.UserError("give all of --coordinator, --num_processes and --process_id.")
    if place != (None, None, None):
        _check_place(*place)
    # Its handler of SIGTERM would swallow the signal; StopSignals has ours.
    jax.config.update("jax_enable_preemption_service", False)
    _on_abort(f"{_NOT_ALL_CAME}.")
    try:
        jax.distributed.initialize(
            *place,
            initialization_timeout=JOIN_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=LEAVE_S,
        )
    except ValueError as error:  # jax finds no cluster
        raise errors.UserError(
            "--distributed finds neither Slurm nor Open MPI nor a TPU pod here; give --coordinator"
            f" host:port, --num_processes and --process_id ({errors.first_line(error)})."
        ) from error
    except RuntimeError as error:
        raise errors.UserError(f"{_NOT_ALL_CAME} ({errors.first_line(error)}).") from error
    _on_abort(f"{_PEER_ENDED}.  Where it is this process that failed, the lines above say so.")
    if jax.process_index() > 0:
        # One voice: what is printed here, in C too, goes nowhere.  Errors still reach stderr.
        sys.stdout.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def check_same(**values: Any) -> None:
    """Refuses to go on where a value, as JSON, is not that of every other process.

    Otherwise the processes would train different detectors, or wait for one another for ever.

    Raises:
      UserError: on every process, with the names that differ.
    """
    if jax.process_count() == 1:
        return
    texts = [json.dumps(value, sort_keys=True) for value in values.values()]
    own = np.array([zlib.crc32(text.encode()) for text in texts], np.uint32)
    of_all = multihost_utils.process_allgather(own)  # [processes, values]
    differ = [
        name for name, column in zip(values, of_all.T, strict=True) if (column != column[0]).any()
    ]
    if differ:
        raise errors.UserError(
            f"the processes of this run differ in {', '.join(differ)}; give all of them the same"
            " command, the same data, and one shared --workdir."
        )


def is_first() -> bool:
    """Whether this process writes the files and prints."""
    return jax.process_index() == 0


def run_main(main: Callable[[list[str]], None]) -> None:
    """`errors.run_main` for programs that may be one of several processes.

    A process that ends by an error leaves at once: the usual end would wait for the others, and
    they for it.
    """
    try:
        errors.run_main(_translated(main))
    except SystemExit as error:
        if jax.distributed.is_initialized() and error.code:
            _leave_at_once(error.code)
        raise
    except BaseException:
        if jax.distributed.is_initialized():
            sys.excepthook(*sys.exc_info())
            _leave_at_once(1)
        raise


def _translated(main):
    """`main`, with the error of a broken connection made the user's sentence."""

    def run(arguments):
        try:
            main(arguments)
        except (ValueError, RuntimeError) as error:  # gloo raises the first, NCCL the second
            text = str(error)
            if jax.distributed.is_initialized() and any(word in text for word in _BROKEN):
                raise errors.UserError(f"{_PEER_ENDED} ({errors.first_line(error)}).") from error
            raise

    return run


def _check_place(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.UserError(
            f"--coordinator is {coordinator!r}; it must be host:port, such as 10.0.0.1:1234."
        )
    if not 0 <= process_id < num_processes:
        raise errors.UserError(
            f"--process_id is {process_id} of --num_processes {num_processes}; ids count from 0."
        )


def _on_abort(sentence: str) -> None:
    """Says the sentence where jax ends this process with `abort`, as it does when a peer is gone.

    jax gives no other place for it, and Python's own handlers do not run in an abort.
    """
    text = f"error: {sentence}\n".encode()

    def handler(_):
        os.write(2, text)
        os._exit(1)

    global _abort_handler  # or it would be collected while C still points to it
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))


def _leave_at_once(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def gather(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The rows of all processes as NumPy arrays, on each of them.

    Args:
      tree: arrays whose first axis is the process's share of the rows of a batch, or jax arrays
        that are spread over the mesh like a batch.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    spread = jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else sharding.put_batch(x, mesh), tree
    )
    return jax.device_get(_replicate(mesh)(spread))


@functools.cache
def _replicate(mesh: jax.sharding.Mesh):
    """One function a mesh: a new one each time would be compiled each time."""

    def gather_rows(tree):
        return tree

    return jax.jit(gather_rows, out_shardings=sharding.replicated(mesh))


class StopSignals:
    """True once Ctrl-C or SIGTERM has come; a second Ctrl-C ends the program at once.

    The handler only takes a note: it may interrupt anything, a print included.  With several
    processes it is True when all know that one of them was told to stop: `wanted` of each goes
    through the compiled step, and its result into `agree`.
    """

    def __init__(self):
        self.name = ""  # of the signal
        self._wanted = False
        self._agreed = False
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._agreed if jax.process_count() > 1 else self.wanted

    @property
    def wanted(self) -> bool:
        """Whether this process was told to stop."""
        return self._wanted

    def agree(self, wanted: bool) -> None:
        """What all processes have learnt at the same step: whether any was told to stop."""
        if wanted:
            self._agreed = True
            self.name = self.name or "a signal to another process"

    def _handle(self, number, frame):
        self._wanted, self.name = True, signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

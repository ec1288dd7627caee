"""Runs on several processes, each with its own devices; see docs/scaling.md.

Every process runs the same program on its rows of each batch.  Events that only one process sees
but all must act on, such as a signal, travel with the batch through the compiled step.  All
processes then learn of it at the same step, and none waits for one that has stopped.
"""

import argparse
import ctypes
import functools
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from detlab import errors, sharding

HEARTBEAT_S = 60  # a process that is silent for this long counts as dead
JOIN_S = 300  # timeout for all processes to start
REPEAT_S = 0.1  # `timeout` and job systems may send one signal twice
LEAVE_S = 1800  # timeout at the end: the first process still draws and writes

_NOT_ALL_CAME = (
    f"not all processes of this run started within {JOIN_S} s; start all of them with the same"
    " --coordinator and --num_processes and a different --process_id each, and check that the"
    " coordinator's host and port are reachable"
)
_PEER_ENDED = (
    "another process of this run has ended or cannot be reached; see its output for the cause.  The"
    " last checkpoint is kept; start all processes again with the same command to resume"
)
# Words in the errors that gloo, NCCL and jax's coordination service raise on a broken connection.
_BROKEN = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")


def join(args: argparse.Namespace) -> None:
    """Joins the processes of the run; does nothing without `--distributed`.

    Slurm, Open MPI and TPU pods define the ids of the processes; elsewhere the three flags do.
    Must be called before a device is used.

    Raises:
      UserError: the flags are incomplete or invalid, or not all processes started.
    """
    place = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed:
        if place != (None, None, None):
            raise errors.UserError(
                "--coordinator, --num_processes and --process_id need --distributed; add it."
            )
        return
    if None in place and place != (None, None, None):
        raise errors.UserError(
            "--coordinator, --num_processes and --process_id must be given together; add the"
            " missing ones."
        )
    if place != (None, None, None):
        _check_place(*place)
    # jax's own SIGTERM handler would swallow the signal; StopSignals handles it instead.
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
            "--distributed finds no Slurm, Open MPI or TPU pod here; give --coordinator host:port,"
            f" --num_processes and --process_id ({errors.first_line(error)})."
        ) from error
    except RuntimeError as error:
        raise errors.UserError(f"{_NOT_ALL_CAME} ({errors.first_line(error)}).") from error
    _on_abort(f"{_PEER_ENDED}.  If this process failed, the lines above give the cause.")
    if jax.process_index() > 0:
        # Only the first process prints: drop stdout, C code's included.  stderr stays.
        sys.stdout.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def check_same(**values: Any) -> None:
    """Checks that each value, as JSON, is the same in all processes.

    Otherwise the processes would train different detectors or deadlock.

    Raises:
      UserError: in every process, with the names of the values that differ.
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
            " command, the same data and one shared --workdir."
        )


def is_first() -> bool:
    """Whether this process writes the files and prints."""
    return jax.process_index() == 0


def run_main(main: Callable[[list[str]], None]) -> None:
    """`errors.run_main` for programs that may run on several processes.

    A process that fails exits at once: a normal exit would wait for the others, which wait for it.
    """
    try:
        errors.run_main(_translated(main))
    except SystemExit as error:
        if jax.distributed.is_initialized() and error.code:
            errors.leave(error.code)
        raise
    except BaseException:
        if jax.distributed.is_initialized():
            sys.excepthook(*sys.exc_info())
            errors.leave(1)
        raise


def _translated(main):
    """`main`, with the error of a broken connection raised as a `UserError`."""

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
            f"--process_id is {process_id}; it must be at least 0 and below --num_processes,"
            f" {num_processes}."
        )


def _on_abort(sentence: str) -> None:
    """Prints the sentence if jax ends this process with `abort`, as it does when a peer is gone.

    jax has no other hook for this, and Python's signal handlers do not run during an abort.
    """
    text = f"error: {sentence}\n".encode()

    def handler(_):
        os.write(2, text)
        os._exit(1)

    global _abort_handler  # keeps it alive while C points to it
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))


def gather(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Gathers the rows of all processes as NumPy arrays in each process.

    Args:
      tree: arrays whose first axis is this process's rows of a batch, or jax arrays sharded over
        the mesh like a batch.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    spread = jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else sharding.put_batch(x, mesh), tree
    )
    return jax.device_get(_replicate(mesh)(spread))


@functools.cache
def _replicate(mesh: jax.sharding.Mesh):
    """One function per mesh: a new one for each call would be compiled each time."""

    def gather_rows(tree):
        return tree

    return jax.jit(gather_rows, out_shardings=sharding.replicated(mesh))


class StopSignals:
    """True after Ctrl-C or SIGTERM; a second signal ends the program at once.

    The handler only sets a flag, because it may interrupt anything, even a print.  With several
    processes this is True once all know that one of them was told to stop: the compiled step takes
    `wanted` of each, and its result goes to `agree`.
    """

    def __init__(self):
        self.name = ""  # of the signal
        self._wanted, self._since = False, 0.0
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
        """Records whether any process was told to stop; all processes call it at the same step."""
        if wanted:
            self._agreed = True
            self.name = self.name or "a signal to another process"

    def _handle(self, number, frame):
        name, now = signal.Signals(number).name, time.monotonic()
        if not self._wanted:
            self._wanted, self.name, self._since = True, name, now
        elif now > self._since + REPEAT_S:
            errors.leave(128 + number, f"ended by a second signal, {name}; what was saved stays")

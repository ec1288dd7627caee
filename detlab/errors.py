"""Errors that the user can fix: a program prints one sentence and exits with status 2."""

import contextlib
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """One clear sentence that names the file or key and says what to do."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def run_main(main: Callable[[list[str]], None]) -> None:
    r"""Runs a program's `main(arguments)`; a `UserError` ends it without a traceback.

    Characters that the terminal cannot show are printed as escapes, such as \xe9 for an e with an
    accent.  If the reader of the output, such as `head`, has closed it, the program ends quietly.
    """
    # orbax logs warnings about normal behaviour.  After a failed write, it, asyncio and tensorstore
    # print a traceback for each pending part; the first error, which is raised, is enough.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    _prepare_output()
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _run(main)
    except BrokenPipeError:
        if not any(map(_is_closed, (sys.stdout, sys.stderr))):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        sys.exit(1)


def leave(status: int, word: str = "") -> NoReturn:
    """Ends the process at once, from any place, a signal handler included.

    XLA compiles and computes in threads of its own, and Python's normal exit destroys what they
    use: a segmentation fault.  Here nothing is destroyed.

    Args:
      status: of the exit.
      word: printed first, to stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or interrupted while it was flushed
            stream.flush()
    if word:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{word}\n".encode())
    if "multiprocessing" in sys.modules:  # its normal exit would end the processes that read data
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    os._exit(status)


def interrupt_quietly() -> None:
    """Lets Ctrl-C end the process without a traceback until `run_main` runs the program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(*_):
    leave(130, "interrupted")


def _run(main: Callable[[list[str]], None]) -> None:
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        leave(130, "interrupted")
    finally:
        _flush()


def _prepare_output() -> None:
    """Lets stdout and stderr take any character, and replaces those that are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Writes what stdout still holds, while an error can be told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: cannot write the output: {error.strerror or error}.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the normal exit flushes again
        sys.exit(2)


def _is_closed(stream: io.TextIOBase) -> bool:
    """Whether nobody reads a stream any more: a pipe between processes may have broken instead."""
    watch = select.poll()
    try:
        watch.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # replaced by an object in memory
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))

"""Programs in separate processes that run once on each request.

Each program has its own memory, and several can take turns, so their ratios do not depend on other
load on the machine.  `Worker` is the side that asks, `serve` the side that runs: a line on standard
input requests a run, and its end requests the last figures.  Needs only the standard library, since
peers may run under another Python than detlab.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
_MARK = "turns: "  # starts an answer; all other output is ignored
_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class Failed(Exception):
    """The process ended early; the message is the last line of its error output."""


class Worker:
    """A process that runs `serve`.

    Attributes:
      ready: figures that its program reported before the first turn.
    """

    def __init__(self, command: Sequence[str]):
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self._end()
            raise

    def run(self) -> float:
        """Runs one turn; returns milliseconds."""
        self._process.stdin.write("\n")
        with contextlib.suppress(BrokenPipeError):  # `_answer` raises the reason
            self._process.stdin.flush()
        return self._answer()["ms"]

    def close(self) -> dict:
        """Ends the process; returns its last figures."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._answer()
        finally:
            self._end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        last = lines[-1].removeprefix("error: ") if lines else ""
        raise Failed(last or f"it ended with status {self._process.returncode}")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdout, self._errors):
            file.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def serve(run: Callable[[], None], ready: dict, last: Callable[[], dict] = dict) -> None:
    """Runs once as a warm-up, then once for each line of standard input.

    Args:
      run: returns when all is computed.
      ready: figures known before the first turn.
      last: returns figures after the last run.  `peak_mib` is added: the peak memory of this
        process since the warm-up, without compilation; None if the system does not report it.
    """
    run()
    _forget_peak()
    _say(ready)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        _say({"ms": 1000 * (time.perf_counter() - start)})
    _say({"peak_mib": peak_mib(), **last()})


def peak_mib() -> float | None:
    """Peak resident memory of this process, MiB; None if the system is not Linux."""
    if not _STATUS.exists():
        return None
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) / 1024  # kB


def environment() -> dict[str, str]:
    """The variables of a process that finds the packages of this checkout."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def processor_seconds() -> float:
    """User and system time of this process and all its descendants, also of ended ones.

    On a system other than Linux, descendants count once they have ended.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(u.ru_utime + u.ru_stime for u in used)
    parents, ticks = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # Fields after the name: 1 is the parent, 11 to 14 are its ticks and its children's.
            fields = stat.read_text().rpartition(")")[2].split()
            process = int(stat.parent.name)
            parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))
    found = {os.getpid()}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
        seconds += sum(ticks[p] for p in more) / os.sysconf("SC_CLK_TCK")
    return seconds


def _forget_peak() -> None:
    """Returns freed memory to the system and resets its record of the peak."""
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")


def _say(figures: dict) -> None:
    print(f"{_MARK}{json.dumps(figures, allow_nan=False)}", flush=True)

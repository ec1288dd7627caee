"""Mistakes that a user can mend: every program prints them as one sentence and exits with 2."""

import logging
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """One clear sentence that names the file or key and says what to do."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a program's `main(arguments)`; a `UserError` ends it without a traceback."""
    # orbax warns of what is as it should be.  After a write that failed it, asyncio and tensorstore
    # print tracebacks of every part that was under way; the first error is raised and tells it all.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

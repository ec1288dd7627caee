"""Errors that the user can fix: a program prints one sentence and exits with status 2."""

import logging
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """One clear sentence that names the file or key and says what to do."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a program's `main(arguments)`; a `UserError` ends it without a traceback."""
    # orbax logs warnings about normal behaviour.  After a failed write, it, asyncio and tensorstore
    # print a traceback for each pending part; the first error, which is raised, is enough.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

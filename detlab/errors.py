"""Mistakes that a user can mend: every program prints them as one sentence and exits with 2."""

import logging
import sys
from typing import Callable


class UserError(Exception):
    """One clear sentence that names the file or key and says what to do."""


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a program's `main(arguments)`; a `UserError` ends it without a traceback."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of what is as it should be
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

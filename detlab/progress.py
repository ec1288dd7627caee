"""Progress of long programs: a bar, and printing that does not break it."""

import sys
from collections.abc import Iterable
from typing import Any

import jax
import tqdm


def bar(total: int, what: str, unit: str, **options: Any) -> tqdm.tqdm:
    """A progress bar, shown by the first process; without a terminal, at most one line per 20 s."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    hidden = jax.process_index() > 0
    return tqdm.tqdm(
        total=total, desc=what, unit=unit, mininterval=interval, disable=hidden, **options
    )


def report_skipped(sentences: Iterable[str]) -> None:
    """Prints which images were skipped; processes other than the first print to stderr."""
    file = sys.stdout if jax.process_index() == 0 else sys.stderr
    for sentence in sentences:
        tqdm.tqdm.write(f"skipped: {sentence}", file=file)

"""What a long program says on its way: a bar, and sentences that do not break it."""

import sys
from collections.abc import Iterable

import jax
import tqdm


def bar(total: int, what: str, unit: str, **options) -> tqdm.tqdm:
    """A progress bar, of the first process; into a file it writes a line now and then."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    hidden = jax.process_index() > 0
    return tqdm.tqdm(
        total=total, desc=what, unit=unit, mininterval=interval, disable=hidden, **options
    )


def report_skipped(sentences: Iterable[str]) -> None:
    """Says which images were left out; the output of other processes than the first is stderr."""
    file = sys.stdout if jax.process_index() == 0 else sys.stderr
    for sentence in sentences:
        tqdm.tqdm.write(f"skipped: {sentence}", file=file)

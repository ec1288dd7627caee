"""The shipped experiments and what to expect of them, read from their docstrings.

The last paragraph of an experiment's docstring is one line of this form, for the experiment without
a variant:

    Expected: COCO 2017 | 12 epochs, not timed | 50 GB for 16 images | AP 0.365, published

The columns are: data; the time if a run was timed, else its length; memory of a training step as
`benchmarks.step_memory` computes it; and the figure, which is published for the reference
("published"), measured with this code ("seed 0"), or absent ("not run").
"""

import ast
import difflib
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from detlab import config as config_lib
from detlab import errors, experiments

EXPECTED = re.compile(
    r"Expected: (?P<data>[^|]+)"
    r" \| (?P<time>about \d+ minutes on \d+ CPU cores?|\d+ (epochs|steps), not timed)"
    r" \| (?P<memory>\d+(\.\d+)? GB for \d+ images)"
    r" \| (?P<figure>not run|(AP|AP50|mAP07|mAP12) 0\.\d+[^|]*, (published|seed 0))"
)
FOR_TESTS = ("overfit", "tiny")  # first words of variants that only benchmarks and tests use
FEW = 5  # number of variants to show


class Experiment(NamedTuple):
    """One line of the list."""

    name: str
    variants: tuple[str, ...]
    data: str
    time: str
    memory: str
    figure: str


def read(name: str) -> Experiment:
    """Reads the docstring and variants of a shipped experiment, without importing jax.

    Raises:
      ValueError: its docstring does not end with a line `Expected:` of the form above.
    """
    path = pathlib.Path(experiments.__file__).parent / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = EXPECTED.fullmatch(docstring.rpartition("\n\n")[2])
    if not found:
        raise ValueError(f"{path}: the docstring must end with a line `Expected: ...`")
    variants = [v for v in config_lib.variants(name) if v.partition("_")[0] not in FOR_TESTS]
    return Experiment(name, tuple(variants), **found.groupdict())


def find(text: str = "") -> list[Experiment]:
    """The shipped experiments whose names contain `text`.

    Raises:
      UserError: no name contains it.
    """
    names = config_lib.shipped()
    found = [read(name) for name in names if text.lower() in name]
    if not found:
        parts = {*names, *(part for name in names for part in name.rsplit("_", 1))}
        close = difflib.get_close_matches(text, sorted(parts), n=1)
        hint = f"Did you mean {close[0]}?" if close else "`detlab list` shows all."
        raise errors.UserError(f"no shipped experiment has {text!r} in its name. {hint}")
    return found


def table(found: Sequence[Experiment]) -> str:
    """The experiments as text, one per line, in columns with headings."""
    rows = [("experiment", *Experiment._fields[1:])]
    rows += [(row.name, _few(row.variants), *row[2:]) for row in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _few(variants: Sequence[str]) -> str:
    more = len(variants) - FEW
    return " ".join(variants[:FEW]) + (f" +{more}" if more > 0 else "")

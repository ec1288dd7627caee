"""What runs the recorded cases of one reference."""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks.parity import cases, checks


class Settings(NamedTuple):
    """What a run of cases was asked for, the same of all."""

    folders: cases.Folders
    seed: int = 0  # of what the check itself draws
    compiler_options: Mapping | None = None


# Lines, and the names of recorded arrays that nothing is compared with.
Compared = tuple[list[checks.Line], list[str]]


class Runner(NamedTuple):
    """How cases of a reference are known and run; `info` is the JSON of a case."""

    reference: str
    knows: Callable[[Mapping], bool]  # of `info`
    run: Callable[[pathlib.Path, str, dict, Settings], Compared]  # (fixtures, name, info, settings)
    # (fixtures, name, info) -> what detlab does not have that the case needs, in words; "" for all.
    lacks: Callable[[pathlib.Path, str, Mapping], str] = lambda fixtures, name, info: ""
    # (info): UserError for what `run` would not take, found before anything is compiled.
    check: Callable[[dict], object] = lambda info: None

"""The contract of a runner, which runs the recorded cases of one reference."""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks.parity import cases, checks


class Settings(NamedTuple):
    """Settings of a run, the same for all its cases."""

    folders: cases.Folders
    seed: int = 0  # of the numbers that the check draws
    compiler_options: Mapping | None = None


# Lines, and the names of recorded arrays that are not compared.
Compared = tuple[list[checks.Line], list[str]]


class Runner(NamedTuple):
    """How to recognise and run cases of a reference; `info` is the JSON of a case."""

    reference: str
    knows: Callable[[Mapping], bool]  # of `info`
    run: Callable[[pathlib.Path, str, dict, Settings], Compared]  # (fixtures, name, info, settings)
    # (fixtures, name, info) -> what the case needs and detlab lacks, in words; "" for nothing.
    lacks: Callable[[pathlib.Path, str, Mapping], str] = lambda fixtures, name, info: ""
    # (info): raises UserError, before anything is compiled, for what `run` would refuse.
    check: Callable[[dict], object] = lambda info: None

"""Which files are known: each table names its own in `SOURCES`, and a file is known by its names.

A detector that has the names of another, as an algorithm that only trains differently does, has a
source of its own with the same marks; the config then says which is meant.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import NamedTuple

from detlab.converters import mapping, tables


class Source(NamedTuple):
    """A kind of file: how to know one, and what it is converted by."""

    family: str  # one of `families.NAMES`
    description: str
    marks: tuple[str, ...]  # names that every such file has
    table: Callable[..., mapping.Table]  # of `bgr`, or of what its family makes a table of
    detector: str | None  # the only one that it fits; None: any with such a subtree


def collect() -> tuple[Source, ...]:
    """The sources of every file in `converters/tables`."""
    modules = (
        importlib.import_module(f"{tables.__name__}.{found.name}")
        for found in pkgutil.iter_modules(tables.__path__)
    )
    return tuple(source for module in modules for source in getattr(module, "SOURCES", ()))


def fitting(sources: Iterable[Source], names: Iterable[str]) -> list[Source]:
    """The sources that a file with these names may be of, in any order.

    A source gives way to one that has its marks and more: a RetinaNet with the counts of GHM has
    the names of a RetinaNet too.  So those that are left differ in family or detector alone, or
    their tables do not say enough.
    """
    names = set(names)
    known = [source for source in sources if names.issuperset(source.marks)]
    return [source for source in known if not any(set(source.marks) < set(o.marks) for o in known)]

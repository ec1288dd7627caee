"""The kinds of files that can be converted: each table lists its own in `SOURCES`.

A file is recognised by the names of its tensors.  Two detectors that differ only in training have
the same names, so they have two sources with the same marks; the config decides between them.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import NamedTuple

from detlab.converters import mapping, tables


class Source(NamedTuple):
    """A kind of file: how to recognise and convert it."""

    family: str  # one of `families.NAMES`
    description: str
    marks: tuple[str, ...]  # names that every such file has
    table: Callable[..., mapping.Table]  # takes `bgr`, or whatever its family passes
    detector: str | None  # the only one that it fits; None: any with such a subtree
    is_part: bool = False  # only a backbone, whose names a whole detector has too


def collect() -> tuple[Source, ...]:
    """The sources of every file in `converters/tables`."""
    modules = (
        importlib.import_module(f"{tables.__name__}.{found.name}")
        for found in pkgutil.iter_modules(tables.__path__)
    )
    return tuple(source for module in modules for source in getattr(module, "SOURCES", ()))


def fitting(sources: Iterable[Source], names: Iterable[str]) -> list[Source]:
    """The sources that match a file with these names, in any order.

    A source loses to one that has all its marks and more: a RetinaNet with the counts of GHM also
    has the names of a RetinaNet.  Sources that remain differ only in family or detector, unless
    their marks are too few.
    """
    names = set(names)
    known = [source for source in sources if names.issuperset(source.marks)]
    return [source for source in known if not any(set(source.marks) < set(o.marks) for o in known)]

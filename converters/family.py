"""What a family of weight files is to the two directions, and how one is found."""

import argparse
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from detlab.converters import families, mapping, sources
from detlab.converters.readers import contents
from detlab.run import checkpoint


class Foreign(NamedTuple):
    """A file as it is converted for a config."""

    tensors: Mapping[str, np.ndarray]
    table: mapping.Table
    class_names: tuple[str, ...]  # none where the file does not tell, or its classes are left out
    origin: dict[str, Any]  # noted in the weights folder, beside the names of file and table
    counted: str  # what is printed at the end, of {matched} tensors


class Family(NamedTuple):
    """Weights of one code base: how files are known, read and written.

    The last three are what `named.read` and `named.write` ask, which families share whose files
    have names; a family that reads and writes by itself has none of them.
    """

    name: str  # what --source says
    # A file -> what is converted; sets the fields of the config that the file decides.
    read: Callable[[pathlib.Path, Any, argparse.Namespace, Mapping[str, str]], Foreign]
    # Flags, config, weights and their leaves -> a file, and the sentence that is printed.
    write: Callable[[argparse.Namespace, Any, checkpoint.Weights, dict], str]
    suffixes: tuple[str, ...]  # of what is written
    files: str = "a file with names"
    knows: Callable[[bytes], bool] = lambda head: False  # files without names, by how they begin
    detector: str | None = None  # that this family alone writes
    flags: tuple[str, ...] = ()  # that go with its files alone
    # A kind of file, a config and --bgr -> the table; raises UserError where they do not go.
    table: Callable[[sources.Source, Any, bool], mapping.Table] | None = None
    # As `read`, with what the file holds behind the path: only checks and sets fields.
    fill_in: Callable[..., None] = lambda path, file, config, flags, overrides: None
    buffers: Callable[[Any], dict] = lambda config: {}  # arrays written besides the leaves


def find(name: str) -> Family:
    """The family that --source calls so.

    It is imported here and not above, as families stand on this file.
    """
    return importlib.import_module(f"{families.__name__}.{name}").FAMILY


def every() -> list[Family]:
    """All, in the order of `families.NAMES`."""
    return [find(name) for name in families.NAMES]


def of_file(path: pathlib.Path, source: str) -> Family:
    """The family that reads a file: of --source, or known by how the file begins.

    All whose files have names read them alike, and find out by the names which is meant.
    """
    if source != "auto":
        return find(source)
    with contents.reading(path, "weight file", contents.ReadError), path.open("rb") as file:
        head = file.read(512)
    return next((family for family in every() if family.knows(head)), every()[0])


def of_detector(detector: str) -> Family:
    """The family that writes a detector; of all whose files have names, one, as in `of_file`."""
    return next((family for family in every() if family.detector == detector), every()[0])

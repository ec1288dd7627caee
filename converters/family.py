"""Families of weight files: what each one provides for both directions, and how it is found."""

import argparse
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from detlab.converters import families, mapping, sources
from detlab.converters.readers import contents
from detlab.run import checkpoint


class Foreign(NamedTuple):
    """A weight file, ready to be converted for a config."""

    tensors: Mapping[str, np.ndarray]
    table: mapping.Table
    class_names: tuple[str, ...]  # empty if the file has none or its class layers are dropped
    origin: dict[str, Any]  # recorded in the weights folder, beside the names of file and table
    counted: str  # what was converted, in words; {matched} is the number of tensors


class Family(NamedTuple):
    """Weights of one code base: how files are recognised, read and written.

    Families whose files have names share `named.read` and `named.write`, which use the last three
    fields.  A family with its own `read` and `write` leaves these fields unset.
    """

    name: str  # the value of --source
    # File -> what to convert; sets the config's fields that the file determines.
    read: Callable[[pathlib.Path, ConfigDict, argparse.Namespace, Mapping[str, str]], Foreign]
    # Flags, config, weights and their leaves: writes a file and returns the sentence to print.
    write: Callable[[argparse.Namespace, ConfigDict, checkpoint.Weights, dict], str]
    suffixes: tuple[str, ...]  # of the files that it writes
    files: str = "a file with names"
    knows: Callable[[bytes], bool] = lambda head: False  # files without names, by their first bytes
    detector: str | None = None  # that only this family writes
    flags: tuple[str, ...] = ()  # that only its files take
    # Kind of file, config and --bgr -> table; raises UserError if they contradict each other.
    table: Callable[[sources.Source, ConfigDict, bool], mapping.Table] | None = None
    # As `read`, with the file's contents after the path; only checks and sets fields.
    fill_in: Callable[..., None] = lambda path, file, config, flags, overrides: None
    buffers: Callable[[ConfigDict], dict] = (
        lambda config: {}
    )  # arrays written in addition to the leaves


def find(name: str) -> Family:
    """The family with this --source name.

    Imported here and not above, because families import this file.
    """
    return importlib.import_module(f"{families.__name__}.{name}").FAMILY


def every() -> list[Family]:
    """All families, in the order of `families.NAMES`."""
    return [find(name) for name in families.NAMES]


def of_file(path: pathlib.Path, source: str) -> Family:
    """The family that reads a file, by --source or by the file's first bytes.

    All families whose files have names read them alike; the names tell which one is meant.
    """
    if source != "auto":
        return find(source)
    with contents.reading(path, "weight file", contents.ReadError), path.open("rb") as file:
        head = file.read(512)
    return next((family for family in every() if family.knows(head)), every()[0])


def of_detector(detector: str) -> Family:
    """The family that writes a detector.

    If no family has this detector to itself, the first one stands for all whose files have names.
    """
    return next((family for family in every() if family.detector == detector), every()[0])

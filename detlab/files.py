"""Atomic writing of files, and checks that outputs are writable before long work starts."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from detlab import errors


@contextlib.contextmanager
def writing(path: str | pathlib.Path) -> Iterator[None]:
    """Turns an `OSError` raised while `path` is written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise errors.UserError(f"cannot write {path}: {error.strerror or error}.") from error


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes a file atomically and creates its folder."""
    path = pathlib.Path(path)
    special = path.exists() and not path.is_file()  # /dev/stdout cannot be replaced
    temporary = path if special else path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        if not special:
            temporary.replace(path)


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, atomically, and creates its folder."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def save_picture(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes an RGB image; a path that cannot be written raises a `UserError`."""
    from detlab.viz import boxes as draw_lib  # imported late: writing text needs no OpenCV

    with writing(path):
        draw_lib.save(path, image)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names, with the position appended to each repeated one; case is ignored."""
    taken, unique = set(), []
    for i, name in enumerate(names):
        while name.lower() in taken:
            name = f"{name}_{i}"
        taken.add(name.lower())
        unique.append(name)
    return unique


def missing(paths: Iterable[str | pathlib.Path]) -> list[str]:
    """The paths that do not exist, in their order; links must lead somewhere.

    Each folder is listed once: a question per file would take minutes on a slow network.
    """
    listed = {}
    absent = []
    for path in map(str, paths):
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        if name not in listed[folder] and not os.path.exists(path):
            absent.append(path)
    return absent


def _files_in(folder: str) -> set[str]:
    """The names in a folder but for links, which may lead nowhere."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except (OSError, ValueError):  # ValueError: a name that no folder can have
        return set()


def check_outputs(
    files: Iterable[str | pathlib.Path] = (), folders: Iterable[str | pathlib.Path] = ()
) -> None:
    """Creates the folders of all outputs, to fail before the long work and not after it.

    Raises:
      UserError: a path that cannot be written.
    """
    files = [pathlib.Path(file) for file in files]
    for folder in [*map(pathlib.Path, folders), *(file.parent for file in files)]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise errors.UserError(
                f"cannot write into the folder {folder}: {error.strerror or error}."
            ) from error
    for file in files:
        if file.is_dir():
            raise errors.UserError(f"cannot write {file}: it is a folder; name a file in it.")
        if file.exists() and not os.access(file, os.W_OK):
            raise errors.UserError(
                f"cannot write {file}: it is write-protected; name another file."
            )

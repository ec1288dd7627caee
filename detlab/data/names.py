r"""Names of files in lists and annotations that other programs or systems wrote.

The same file may be `JPEGImages\p0.JPG` in a list and `p0.jpg` on the disk, and macOS writes the é
of `café.jpg` as two characters where other systems write one.  Names are compared in Unicode's
normal form C.
"""

import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Sequence

from detlab import text
from detlab.data import headers


def normal(name: str) -> str:
    """The name in Unicode's normal form C, in which names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spellings(name: str) -> Iterator[str]:
    """The name with / between its folders, then without its leading folders, one by one."""
    for whole in dict.fromkeys((name.strip(), urllib.parse.unquote(name.strip()))):
        parts = [part for part in re.split(r"[/\\]+", whole) if part not in ("", ".")]
        for at in range(len(parts)):
            yield "/".join(parts[at:])


def without_suffix(name: str) -> str:
    """The name without the suffix of an image or annotation file; other suffixes stay."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in (*headers.SUFFIXES, ".xml") else name


class Files:
    """The files of a folder and those below it, by their names in lists.

    A folder is listed once, when it is first needed, instead of asking for each file.

    Attributes:
      respelled: {name in a list: path}, for names that are not those of the files found for them;
        filled by `paths` and by the reader of a list.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder)
        self.respelled = {}
        self._names = {}  # folder -> its entries
        self._folded = {}  # folder -> {entry without case, in normal form: entries}

    def exact(self, name: str) -> str | None:
        """The path of the file of exactly this name; None if there is none."""
        parent, base = os.path.split(name)
        plain = "./" not in name and "//" not in name and not os.path.isabs(name)
        path = f"{self.folder}/{name}" if plain else str(self.folder / name)
        return path if base in self._list(os.path.join(self.folder, parent)) else None

    def find(self, *candidates: str) -> str | None:
        """The path of the first of the candidates, relative names, that is there; None if none is.

        Each may differ from its file in case and in Unicode's form if that leaves one file.
        """
        return next(filter(None, map(self._walk, candidates)), None)

    def paths(self, names: Sequence[str]) -> list[str]:
        """The path of the file of each name; of a file that is not there, where it would be.

        Two different names do not lead to one file, unless one of them is exactly its name.
        """
        there = {name: self.exact(name) for name in names}
        claims = {path: [] for path in there.values()}  # path -> the names that differ from it
        for name in [name for name, path in there.items() if path is None]:
            path = self.find(*spellings(name))
            if path is not None:
                claims.setdefault(path, []).append(name)
        known = set(there.values())
        for path, claimants in claims.items():
            if len(claimants) == 1 and path not in known:
                there[claimants[0]] = self.respelled[claimants[0]] = path
        return [there[name] or str(self.folder / name) for name in names]

    def problems(self, listed_in: str | pathlib.Path) -> list[str]:
        """A sentence on the names that are not those of the files found for them, if any."""
        if not self.respelled:
            return []
        (name, path), *others = self.respelled.items()
        if not others:
            return [f"a name in {listed_in} is spelt otherwise than its file: {name!r} is {path}"]
        return [
            f"{len(self.respelled)} names in {listed_in} are spelt otherwise than their files (the "
            f"first: {name!r} is {path})"
        ]

    def _list(self, folder):
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder))
            except (OSError, ValueError):  # ValueError: a name that no folder can have
                self._names[folder] = set()
        return self._names[folder]

    def _walk(self, name):
        """The path of a relative name, each part in its own spelling or another."""
        folder = str(self.folder)
        for part in name.split("/"):
            entries = self._list(folder)
            if part not in entries and part != "..":
                if folder not in self._folded:
                    folded = self._folded[folder] = {}
                    for entry in entries:
                        folded.setdefault(_fold(entry), []).append(entry)
                similar = self._folded[folder].get(_fold(part), [])
                if len(similar) != 1:
                    return None
                (part,) = similar
            folder = f"{folder}/{part}"
        return folder if os.path.isfile(folder) else None


def _fold(name):
    return normal(normal(name).casefold())


def read_lines(path: pathlib.Path, is_there: Callable[[str], bool]) -> list[str]:
    """The lines of a list of names, stripped.

    A list without a byte order mark may be in an older encoding of Windows: in the first in which
    `is_there` is true for all lines with letters outside ASCII.  Even if it can be read as UTF-8:
    the 猫 of GB2312 is the è of UTF-8.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is no text, or in an unknown encoding; see `text.decode`.
    """
    data = path.read_bytes()
    try:
        lines, fault = _lines(text.decode(data)), None
        if _all_there(lines, is_there):
            return lines
    except ValueError as error:
        lines, fault = [], error
    for encoding in _OLD_ENCODINGS:
        try:
            # The names of files that are no UTF-8 either have Python's surrogates.
            errors = "surrogateescape" if encoding == "utf-8" else "strict"
            others = _lines(data.decode(encoding, errors))
        except UnicodeDecodeError:
            continue
        if not all(map(str.isascii, others)) and _all_there(others, is_there):
            return others
    if fault is not None:
        raise fault
    return lines


_OLD_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "cp1252", "cp1250", "cp1251")
_OLD_ENCODINGS += ("gb18030", "cp932", "cp949", "cp950")


def _all_there(lines, is_there):
    return all(is_there(line) for line in lines if not line.isascii())


def _lines(content):
    return [line.strip() for line in content.splitlines()]

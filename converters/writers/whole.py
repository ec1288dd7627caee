"""Files that are written completely or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A new path in the folder of `path`; what is written there takes the place of `path` at last.

    After any exception `path` is as it was, and nothing lies beside it; a process that is killed
    leaves no more than the file beside it.

    Args:
      path: a file that may exist, or a link to one, which stays a link.
    Raises:
      OSError: there is a folder, a device or the like at `path`, or the file cannot be put there.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is no regular file", os.fspath(path))
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

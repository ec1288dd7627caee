"""Files that are written completely or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path in the folder of `path`; the file written there replaces `path`.

    After any exception `path` is unchanged and the temporary file is gone; a process that is killed
    leaves at most the temporary file.

    Args:
      path: a file that may exist, or a link to one, which stays a link.
    Raises:
      OSError: `path` is a folder, a device or the like, or the file cannot be written there.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is not a regular file", os.fspath(path))
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

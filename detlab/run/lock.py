"""One run per folder: a lock that belongs to its process and ends with it, however it ends.

It is an advisory lock of the operating system (flock) on the file `lock`, which names the host and
the process.  Several hosts see each other's locks where the file system shares them: NFS, Lustre
with the mount option flock, GPFS.  A mounted bucket (gcsfuse) locks within each host alone.
"""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator

from detlab import errors, files

NAME = "lock"
WAIT_S = 1.0  # for a process that is about to end


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder, which is created, and removed at the end if nothing is in it.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / NAME
    with files.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = _taken(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held
        file.close()
        with contextlib.suppress(OSError):  # not empty
            for empty in made:
                empty.rmdir()


def _taken(path: pathlib.Path) -> io.TextIOBase:
    until = time.monotonic() + WAIT_S
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read()
            file.close()
            if time.monotonic() > until:
                raise errors.UserError(_in_use(path.parent, holder)) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            print(
                f"{path.parent} is on a file system without locks ({error.strerror}), so nothing"
                " would stop a second run in it"
            )
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder has just removed it
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    json.dump({"host": platform.node(), "process": os.getpid(), "since": since}, file)
    file.flush()
    return file


def _in_use(folder: pathlib.Path, holder: str) -> str:
    try:
        found = json.loads(holder)
        who = f"process {found['process']} on {found['host']}, since {found['since']}"
    except (ValueError, TypeError, KeyError):  # not written yet
        who = "another process"
    way = "wait until that run ends, stop it, or give another --workdir"
    return f"{folder} is in use by {who}; {way}."

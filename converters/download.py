"""Weight files from the web, once: checked by their SHA-256, kept in the user's cache folder."""

import contextlib
import fcntl
import hashlib
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import client

import tqdm

from detlab import environment, errors
from detlab.converters import published

TIMEOUT_S = 60  # without a byte
_BLOCK = 1 << 20
_USER_AGENT = {"User-Agent": "detlab"}


def is_url(text: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text) is not None


def local(file: str, sha256: str) -> pathlib.Path:
    """The path of a file, which is downloaded first if it is a URL."""
    if is_url(file):
        return fetch(file, sha256)
    if sha256:
        raise errors.UserError("--sha256 goes with a URL; a file that is here is read as it is.")
    return pathlib.Path(file)


def fetch(url: str, sha256: str = "", folder: pathlib.Path | None = None) -> pathlib.Path:
    """The path of the file behind a URL, downloaded unless it is there.

    A download that breaks off goes on where it stopped at the next call.

    Args:
      url: http or https.
      sha256: the whole checksum in hex, or its first 8 digits or more.  "" where
        `published.SHA256` has the URL, or the file's name ends with it, as
        `resnet50-0676ba61.pth` and the names of mmdetection's files do.
      folder: where files are kept; default: detlab/downloads in the user's cache folder.
    Raises:
      UserError: no checksum, another one, or the server does not give the file.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        name = pathlib.PurePosixPath(urllib.parse.unquote(parts.path)).name
    except ValueError as error:
        raise errors.UserError(f"{url} is no address ({error}).") from error
    if parts.scheme not in ("http", "https") or not name:
        raise errors.UserError(f"{url} is no http or https address of a file.")
    wanted = _checksum(url, name, sha256)
    folder = folder or environment.cache_folder("downloads")
    path = folder / f"{wanted[:8]}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / f"{path.name}.lock"):
            return _fetched(url, wanted, path)
    except client.HTTPException as error:
        raise errors.UserError(
            f"{url} broke off ({error!r}); the same command goes on where it stopped."
        ) from error
    except OSError as error:  # urllib's errors are of this kind too
        reason = getattr(error, "reason", None) or error.strerror or error
        raise errors.UserError(
            f"{url} cannot be downloaded ({reason}); the same command goes on where it stopped, or"
            " give a file that you fetched in another way."
        ) from error
    except ValueError as error:  # letters that an address cannot have
        raise errors.UserError(f"{url} is no address ({error}).") from error


def _fetched(url: str, wanted: str, path: pathlib.Path) -> pathlib.Path:
    if path.exists():
        if _sha256(path).startswith(wanted):
            print(f"{url} is here already: {path}")
            return path
        path.unlink()  # damaged since
    part = path.with_name(f"{path.name}.part")
    _download(url, part)
    found = _sha256(part)
    if not found.startswith(wanted):
        part.unlink()
        raise errors.UserError(
            f"{url} has the SHA-256 {found} and not {wanted}, unless the server cut it short; it"
            " was removed.  Give the publisher's own checksum with --sha256."
        )
    part.replace(path)
    return path


@contextlib.contextmanager
def _only_one(lock: pathlib.Path) -> Iterator[None]:
    """Two processes may not write one file."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.UserError(
                f"another process downloads this file now (it holds {lock}); wait for it."
            ) from None
        try:
            yield
        finally:
            lock.unlink()


def _checksum(url: str, name: str, sha256: str) -> str:
    # Eight digits that begin with 19 or 20 are a date.
    in_name = re.search(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$", name)
    known = published.SHA256.get(url, in_name[1] if in_name else "")
    wanted = (sha256 or known).lower()
    if not wanted:
        raise errors.UserError(
            f"{url} needs --sha256, the checksum that its publisher gives: weights are read from"
            " the web only when they are known."
        )
    if not re.fullmatch(r"[0-9a-f]{8,64}", wanted):
        raise errors.UserError(f"--sha256 is {sha256!r}; it must be 8 to 64 hex digits.")
    return wanted


def _download(url: str, part: pathlib.Path) -> None:
    """Writes the file, or what is missing of it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {**_USER_AGENT, **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or the file is another: the checksum decides
            return
        raise
    with reply:
        goes_on = reply.status == 206  # a server may know no ranges and send all
        length = reply.headers.get("Content-Length")
        total = int(length) + (have if goes_on else 0) if length else None
        with (
            part.open("ab" if goes_on else "wb") as file,
            tqdm.tqdm(
                total=total,
                initial=have if goes_on else 0,
                desc=part.name.removesuffix(".part"),
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            while block := reply.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
            if total is not None and file.tell() < total:
                raise client.IncompleteRead(b"", total - file.tell())


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

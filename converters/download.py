"""Downloads weight files once, checks their SHA-256 and keeps them in the user's cache folder."""

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

TIMEOUT_S = 60  # without receiving a byte
_BLOCK = 1 << 20
_USER_AGENT = {"User-Agent": "detlab"}


def is_url(text: str) -> bool:
    """Whether the text is a URL rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text) is not None


def local(file: str, sha256: str) -> pathlib.Path:
    """The local path of a file; a URL is downloaded first."""
    if is_url(file):
        return fetch(file, sha256)
    if sha256:
        raise errors.UserError("--sha256 is for URLs; remove it, as local files are not checked.")
    return pathlib.Path(file)


def fetch(url: str, sha256: str = "", folder: pathlib.Path | None = None) -> pathlib.Path:
    """Downloads the file behind a URL, unless it is in the cache, and returns its path.

    The next call resumes a download that was interrupted.

    Args:
      url: http or https.
      sha256: the checksum in hex, or at least its first 8 digits.  "" if `published.SHA256` has the
        URL or the file's name contains the checksum, as `resnet50-0676ba61.pth` does.
      folder: the cache; default: detlab/downloads in the user's cache folder.
    Raises:
      UserError: the checksum is missing or wrong, or the server does not send the file.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        name = pathlib.PurePosixPath(urllib.parse.unquote(parts.path)).name
    except ValueError as error:
        raise errors.UserError(f"{url} is not a valid URL ({error}).") from error
    if parts.scheme not in ("http", "https") or not name:
        raise errors.UserError(f"{url} is not the http or https URL of a file.")
    wanted = _checksum(url, sha256)
    folder = folder or environment.cache_folder("downloads")
    path = folder / f"{wanted[:8]}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / f"{path.name}.lock"):
            return _fetched(url, wanted, path)
    except client.HTTPException as error:
        raise errors.UserError(
            f"the download of {url} was interrupted ({error!r}); repeat the command to resume it."
        ) from error
    except OSError as error:  # includes urllib's errors
        reason = getattr(error, "reason", None) or error.strerror or error
        raise errors.UserError(
            f"{url} cannot be downloaded ({reason}); repeat the command to try again, or pass a"
            " file that you downloaded yourself."
        ) from error
    except ValueError as error:  # characters that a URL cannot contain
        raise errors.UserError(f"{url} is not a valid URL ({error}).") from error


def _fetched(url: str, wanted: str, path: pathlib.Path) -> pathlib.Path:
    if path.exists():
        if _sha256(path).startswith(wanted):
            print(f"{url} is already downloaded: {path}")
            return path
        path.unlink()  # damaged since the download
    part = path.with_name(f"{path.name}.part")
    _download(url, part)
    found = _sha256(part)
    if not found.startswith(wanted):
        part.unlink()
        raise errors.UserError(
            f"the download of {url} has the SHA-256 {found} instead of {wanted} (cut short, or"
            " another file) and was removed; try again, or pass the publisher's checksum with"
            " --sha256."
        )
    part.replace(path)
    return path


@contextlib.contextmanager
def _only_one(lock: pathlib.Path) -> Iterator[None]:
    """Holds a lock, so that only one process writes a file."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.UserError(
                f"another process is downloading this file (it holds {lock}); try again when it"
                " has finished."
            ) from None
        try:
            yield
        finally:
            lock.unlink()


def _checksum(url: str, sha256: str) -> str:
    wanted = (sha256 or published.checksum(url)).lower()
    if not wanted:
        raise errors.UserError(
            f"{url} needs --sha256 with the publisher's checksum: the file's name contains none,"
            " and every download is checked."
        )
    if not re.fullmatch(r"[0-9a-f]{8,64}", wanted):
        raise errors.UserError(f"--sha256 is {sha256!r}; it must be 8 to 64 hex digits.")
    return wanted


def _download(url: str, part: pathlib.Path) -> None:
    """Downloads the file, or the rest of an interrupted download."""
    have = part.stat().st_size if part.exists() else 0
    headers = {**_USER_AGENT, **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # already complete, or another file: the checksum decides
            return
        raise
    with reply:
        goes_on = reply.status == 206  # a server without ranges sends the whole file
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

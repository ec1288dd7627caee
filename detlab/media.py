"""The user's images and videos: finds, reads and draws them."""

import collections
import glob
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2

from detlab import detect as detect_lib
from detlab import errors
from detlab import files as files_lib
from detlab import text as text_lib
from detlab.data import headers, records

# Formats that OpenCV cannot read get a sentence with the cause, so files of theirs are taken too.
IMAGES = (
    *headers.SUFFIXES,
    ".heic",
    ".heif",
    ".jxl",
    ".tga",
    ".psd",
    ".ico",
    ".svg",
    ".dng",
    ".cr2",
)
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
VIDEOS += (".m2ts", ".mts", ".ogv", ".mjpeg", ".mjpg")


class Inputs(NamedTuple):
    """The files that --input names."""

    files: list[pathlib.Path]  # images and videos, sorted
    passed_over: list[pathlib.Path]  # other files of a folder


def find_inputs(text: str, output: pathlib.Path, flag: str = "--input") -> Inputs:
    """The images and videos of a path, a folder and the folders in it, or a glob pattern.

    Args:
      text: what the user typed.
      output: the folder of the results; where it lies in that of the inputs, it is not searched if
        it holds results of an earlier call.
      flag: where it was typed, for errors.
    """
    path = pathlib.Path(text)
    if path.is_dir():
        found = _search(path, output)
        if not found.files:
            there = f"; there are {_some(found.passed_over, path)}" if found.passed_over else ""
            raise errors.UserError(
                f"{flag} {path} contains no images or videos, nor do its sub-folders{there};"
                " name another folder."
            )
        return found
    if path.is_file():
        return Inputs([path], [])
    found = sorted(pathlib.Path(p) for p in glob.glob(text, recursive=True))
    files = [p for p in found if p.is_file()]
    if not files:
        folders = f" but folders, such as {found[0]}" if found else ""
        raise errors.UserError(
            f"{flag} {text} does not exist and matches no files{folders}; name an image, a video,"
            " a folder or a quoted glob pattern."
        )
    return Inputs(files, [p for p in found if not p.is_file()])


def sentence(found: Inputs, folder: pathlib.Path) -> str:
    """What of the input is passed over; "" if nothing is."""
    if not found.passed_over:
        return ""
    return f"passed over, neither images nor videos: {_some(found.passed_over, folder)}"


def _search(folder, output):
    """`Inputs` of a folder and those in it, each once even if links make circles."""
    files, passed_over, seen = [], [], set()
    results = output.resolve()
    earlier = (results / _LISTING).exists() and results != folder.resolve()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = pathlib.Path(parent).resolve()
        if real in seen or (earlier and real == results):
            folders.clear()
            continue
        seen.add(real)
        # Hidden folders are of programs: .git, the thumbnails of file managers.
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
        for name in sorted(names):
            path = pathlib.Path(parent) / name
            if name in _OF_SYSTEMS:
                continue
            (files if _is_input(path) else passed_over).append(path)
    return Inputs(sorted(files), sorted(passed_over))


_LISTING = "detections.json"
_HIDDEN = (".", "__MACOSX", "@eaDir")
_OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # written into every folder


def _is_input(path):
    """Whether a file is an image or video by its suffix, or an image by its first bytes."""
    if path.name.startswith("."):  # ._photo.jpg of macOS has the attributes of photo.jpg
        return False
    if path.exists() and not path.is_file():  # a pipe, which would be waited for
        return False
    if path.suffix.lower() in IMAGES + VIDEOS:
        return True
    try:
        with path.open("rb") as stream:
            return headers.looks_like_image(stream.read(256))
    except OSError:
        return False


def _some(paths, folder):
    """The first three of some paths, relative to a folder, and the number of the others."""
    names = (str(p.relative_to(folder)) if folder in p.parents else str(p) for p in paths)
    return text_lib.listed(names, 3)


def output_names(files: Sequence[pathlib.Path], folder: pathlib.Path | None = None) -> list[str]:
    """Unique names of the results; files with equal stems keep their suffix in the name.

    Args:
      files: the inputs.
      folder: of the inputs; the results of its sub-folders are in sub-folders of the same name.
    """
    within = [p.relative_to(folder) if folder else pathlib.Path(p.name) for p in files]
    counts = collections.Counter(p.with_suffix("") for p in within)
    stems = [
        p.with_suffix("")
        if counts[p.with_suffix("")] == 1
        else p.with_name(p.name.replace(".", "_"))
        for p in within
    ]
    suffixes = [".mp4" if p.suffix.lower() in VIDEOS else ".png" for p in files]
    names = files_lib.unique_names(stem.as_posix() for stem in stems)
    return [stem + suffix for stem, suffix in zip(names, suffixes, strict=True)]


def check_originals(files: Sequence[pathlib.Path], targets: Sequence[pathlib.Path]) -> None:
    """Checks that no result would overwrite an input or lie in a folder of inputs.

    Raises:
      UserError: a result is an input, directly or through a link, or would be beside one.
    """
    originals = {p.resolve() for p in files}
    folders = {p.parent for p in originals} | {p.parent.resolve() for p in files}
    for target in targets:
        if target.parent.resolve() in folders:
            raise errors.UserError(
                f"--output {target.parent} contains input files, which results could overwrite;"
                " name another folder."
            )
        if target.resolve() in originals:
            raise errors.UserError(
                f"the result {target} would overwrite the input {target.resolve()}; name another"
                " --output."
            )


def process(
    path: pathlib.Path, target: pathlib.Path, detect: detect_lib.Detect, exif: str = "auto"
) -> dict:
    """Detects objects in one file, draws it to `target`, returns its row of `detections.json`.

    `exif` is that of `config.data`; no annotated size decides here, so "auto" reads upright.  Of
    several pictures in a file, the first is used, and `problems` has a sentence.
    """
    if path.suffix.lower() in VIDEOS:
        return process_video(path, target, detect)
    image = records.read_image(path, exif)
    found = detect(image)
    files_lib.save_picture(target, detect.draw(image, found, min_side=480))
    height, width = image.shape[:2]
    pictures = _num_pictures(path)
    several = f"{path} holds {pictures} pictures, of which the first is used"
    return {
        "file": str(path),
        "picture": str(target),
        "height": height,
        "width": width,
        **({"problems": [several]} if pictures > 1 else {}),
        "objects": detect.as_json(found),
    }


def _num_pictures(path):
    """The frames of an animation or the pages of a TIFF."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".bmp"):
        return 1
    try:
        return _named(path, cv2.imcount)
    except cv2.error:
        return 1


def _named(path: pathlib.Path, use: Callable[[str], Any]) -> Any:
    """`use(name)` of a file that OpenCV opens.

    OpenCV crashes on a name that is not UTF-8, so a link leads to the file.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = pathlib.Path(folder, f"file{path.suffix if path.suffix.isascii() else ''}")
            link.symlink_to(path.absolute())
            return use(str(link))
    return use(str(path))


def _why_no_video(path: pathlib.Path) -> str:
    """The cause and the remedy, which end the sentence on a video that cannot be decoded."""
    try:
        with path.open("rb") as stream:
            data = stream.read(1 << 12)
    except OSError as error:
        return f" ({error.strerror}); name another file"
    fault, remedy = headers.fault(data)
    if not fault or "it is a video" in fault or "which OpenCV" in fault or "damaged" in fault:
        return "; convert it to another format"
    return f"{fault}; {remedy or 'download the file again'}".replace("the picture", "the video")


def process_video(path: pathlib.Path, target: pathlib.Path, detect: detect_lib.Detect) -> dict:
    """Like `process`, for every frame of a video.

    `frames` has one list of objects per frame, and `problems` a sentence if the video has fewer
    frames than its header says.  Frames that differ in size from the first are resized to it.
    """
    reader = _named(path, cv2.VideoCapture)
    readable, frame = reader.read()
    if not readable:
        raise records.DataError(f"video {path} cannot be decoded{_why_no_video(path)}")
    # From the frame, not the header: a video that is stored rotated is decoded upright.
    height, width = frame.shape[:2]
    announced = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))  # 0 or less if unknown
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
    code = cv2.VideoWriter_fourcc(*"mp4v")
    writer = _named(target, lambda name: cv2.VideoWriter(name, code, rate, (width, height)))
    if not writer.isOpened():
        raise errors.UserError(f"cannot write the video {target}; name another --output.")
    frames = []
    try:
        while readable:
            if frame.shape[:2] != (height, width):
                frame = cv2.resize(frame, (width, height))
            image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            found = detect(image)
            drawn = detect.draw(image, found, min_side=0)  # a video keeps its size
            writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            frames.append(detect.as_json(found))
            readable, frame = reader.read()
    finally:  # the frames written so far are playable, even after Ctrl-C
        writer.release()
        reader.release()
    problems = []
    if len(frames) < announced:
        problems.append(f"video {path} ends after {len(frames)} of {announced} frames")
    return {
        "file": str(path),
        "picture": str(target),
        "height": height,
        "width": width,
        "frames_per_second": rate,
        "problems": problems,
        "frames": frames,
    }

"""The user's images and videos: finds, reads and draws them."""

import collections
import glob
import pathlib
from collections.abc import Sequence

import cv2

from detlab import detect as detect_lib
from detlab import errors
from detlab import files as files_lib
from detlab.data import records

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def find_inputs(text: str) -> list[pathlib.Path]:
    """The images and videos of a path, folder or glob pattern, sorted."""
    path = pathlib.Path(text)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES + VIDEOS)
        if not found:
            raise errors.UserError(
                f"--input {path} contains no images ({', '.join(IMAGES)}) or videos"
                f" ({', '.join(VIDEOS)}); name another folder."
            )
        return found
    if path.is_file():
        return [path]
    found = sorted(pathlib.Path(p) for p in glob.glob(text, recursive=True))
    found = [p for p in found if p.is_file()]
    if not found:
        raise errors.UserError(
            f"--input {text} does not exist and matches no files; name an image, a video, a folder"
            " or a quoted glob pattern."
        )
    return found


def output_names(files: Sequence[pathlib.Path]) -> list[str]:
    """Unique file names of the results; files with equal stems keep their suffix in the name."""
    counts = collections.Counter(p.stem for p in files)
    stems = [p.stem if counts[p.stem] == 1 else p.name.replace(".", "_") for p in files]
    suffixes = [".mp4" if p.suffix.lower() in VIDEOS else ".png" for p in files]
    return [
        stem + suffix for stem, suffix in zip(files_lib.unique_names(stems), suffixes, strict=True)
    ]


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


def process(path: pathlib.Path, target: pathlib.Path, detect: detect_lib.Detect) -> dict:
    """Detects objects in one file, draws it to `target`, returns its row of `detections.json`."""
    if path.suffix.lower() in VIDEOS:
        return process_video(path, target, detect)
    image = records.read_image(path, upright=True)
    found = detect(image)
    files_lib.save_picture(target, detect.draw(image, found, min_side=480))
    height, width = image.shape[:2]
    return {
        "file": str(path),
        "picture": str(target),
        "height": height,
        "width": width,
        "objects": detect.as_json(found),
    }


def process_video(path: pathlib.Path, target: pathlib.Path, detect: detect_lib.Detect) -> dict:
    """Like `process`, for every frame of a video.

    `frames` has one list of objects per frame, and `problems` a sentence if the video has fewer
    frames than its header says.  Frames that differ in size from the first are resized to it.
    """
    reader = cv2.VideoCapture(str(path))
    readable, frame = reader.read()
    if not readable:
        raise records.DataError(f"video {path} cannot be decoded; convert it to another format.")
    # From the frame, not the header: a video that is stored rotated is decoded upright.
    height, width = frame.shape[:2]
    announced = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))  # 0 or less if unknown
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
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

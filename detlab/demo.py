"""Detects objects on images and videos and draws them.

    python -m detlab.demo --workdir runs/retinanet_shapes --input photos --output found

The input is an image, a folder of images and videos, a glob pattern in quotes, or a video.  The
output folder gets a drawn picture or video for each, and `detections.json`; it must be another
folder than that of the input, which is never written to.

Photos are turned upright as their EXIF orientation says; boxes count the pixels of the upright
picture.
"""

import collections
import glob
import json
import math
import pathlib
from typing import Any, Callable, NamedTuple, Sequence

from detlab import config as config_lib
from detlab import flags

if __name__ == "__main__":
    config_lib.answer_first(flags.demo(__doc__))  # --help needs no import below

import cv2
import jax
import numpy as np

from detlab import contract
from detlab import errors
from detlab import eval as eval_lib
from detlab import programs
from detlab import sharding
from detlab.data import loader
from detlab.data import records
from detlab.data import transforms
from detlab.viz import boxes as draw_lib

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class Detect(NamedTuple):
    """An image to its objects, with what is shown of them."""

    predict: Callable  # (params, state, images, image_size) -> Detections
    params: Any
    state: Any
    data: Any  # the config's block
    class_names: Sequence[str]
    threshold: float
    top_k: int

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """[h, w, 3] uint8 RGB -> boxes [k, 4] in its px, scores [k], labels [k], best first."""
        canvas = canvas_of(image.shape[:2], self.data)
        record = {
            "image": image,
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
            "ignore": np.zeros(0, bool),
            "area": np.zeros(0, np.float32),
            "index": 0,
        }
        rule = programs.resize_rule(self.data, "demo")
        resize = loader.resizer(pad_value=self.data.pad_value, **rule)
        record = resize(record, *canvas)
        batch = loader.to_batch([record], canvas, 1, self.data.pad_value)
        found = jax.device_get(
            self.predict(self.params, self.state, batch.images, batch.image_size)
        )
        keep = found.valid[0] & (found.scores[0] >= self.threshold)
        keep = np.flatnonzero(keep)[: self.top_k]
        boxes = eval_lib.to_original(found.boxes[0][keep], batch.placement[0], image.shape[:2])
        return {"boxes": boxes, "scores": found.scores[0][keep], "labels": found.labels[0][keep]}

    def draw(self, image: np.ndarray, found: dict[str, np.ndarray], min_side: int) -> np.ndarray:
        return draw_lib.draw(image, class_names=self.class_names, min_side=min_side, **found)

    def as_json(self, found: dict[str, np.ndarray]) -> list[dict]:
        """One entry an object: class, score and xyxy box in px of the original."""
        return [
            {
                "class": self.class_names[label],
                "score": round(float(score), 4),
                "box": [round(float(x), 2) for x in box],
            }
            for box, score, label in zip(found["boxes"], found["scores"], found["labels"])
        ]


def main(arguments: Sequence[str]) -> None:
    args, overrides = config_lib.parse(arguments, flags.demo(__doc__))
    eval_lib.check_threshold(args.threshold)
    if args.top_k < 1:
        raise errors.UserError(f"--top_k is {args.top_k}; at least 1 object an image is shown.")
    files = find_inputs(args.input)
    output = pathlib.Path(args.output)
    targets = [output / name for name in output_names(files)]
    listing = output / "detections.json"
    check_originals(files, [*targets, listing])
    eval_lib.check_outputs(files=[*targets, listing])

    config, weights = programs.load_model(args, overrides)
    detector = contract.build(config)
    params, state = programs.fit_weights(detector, config, weights, sharding.make_mesh())
    detect = Detect(
        jax.jit(detector.predict),
        params,
        state,
        config.data,
        names_of(weights.info.get("class_names"), config),
        args.threshold,
        args.top_k,
    )
    rows, failed = [], []
    with programs.progress_bar(len(files), "detect", "file") as bar:
        for path, target in zip(files, targets):
            try:
                row = process(path, target, detect)
            except records.DataError as error:
                failed.append(str(error))
                bar.write(f"skipped: {error}")
            else:
                rows.append(row)
                for problem in row.get("problems", []):
                    bar.write(problem)
            bar.update()
    if not rows:
        raise errors.UserError(f"none of the files could be read; the first: {failed[0]}")
    programs.write_text(listing, json.dumps(rows, indent=1))
    objects = sum(len(part) for row in rows for part in row.get("frames", [row.get("objects", [])]))
    skipped = f", {len(failed)} files skipped" if failed else ""
    print(f"{objects} objects of score {args.threshold:g} or more in {len(rows)} files{skipped}")
    print(f"pictures:     {output}")
    print(f"detections:   {listing}")


def find_inputs(text: str) -> list[pathlib.Path]:
    """The images and videos that a path, a folder or a glob pattern means, in order."""
    path = pathlib.Path(text)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES + VIDEOS)
        if not found:
            raise errors.UserError(f"folder {path} holds no image ({', '.join(IMAGES)}) or video.")
        return found
    if path.is_file():
        return [path]
    found = sorted(pathlib.Path(p) for p in glob.glob(text, recursive=True))
    found = [p for p in found if p.is_file()]
    if not found:
        raise errors.UserError(
            f"--input {text} is no file, no folder, and matches nothing as a pattern."
        )
    return found


def output_names(files: Sequence[pathlib.Path]) -> list[str]:
    """File names of the results, all different; equal stems keep their suffix to differ."""
    counts = collections.Counter(p.stem for p in files)
    stems = [p.stem if counts[p.stem] == 1 else p.name.replace(".", "_") for p in files]
    suffixes = [".mp4" if p.suffix.lower() in VIDEOS else ".png" for p in files]
    return [stem + suffix for stem, suffix in zip(eval_lib.unique_names(stems), suffixes)]


def check_originals(files: Sequence[pathlib.Path], targets: Sequence[pathlib.Path]) -> None:
    """Refuses to write over the user's files, or among them.

    Raises:
      UserError: a result is an input, directly or through a link, or would lie beside one.
    """
    originals = {p.resolve() for p in files}
    folders = {p.parent for p in originals} | {p.parent.resolve() for p in files}
    for target in targets:
        if target.parent.resolve() in folders:
            raise errors.UserError(
                f"--output {target.parent} is a folder of the input, where results could replace"
                " your files; name another folder."
            )
        if target.resolve() in originals:
            raise errors.UserError(
                f"the result {target} would replace the input {target.resolve()}; name another"
                " --output."
            )


def process(path: pathlib.Path, target: pathlib.Path, detect: Detect) -> dict:
    """Draws one file to `target`; returns its row of `detections.json`."""
    if path.suffix.lower() in VIDEOS:
        return process_video(path, target, detect)
    image = records.read_image(path, upright=True)
    found = detect(image)
    eval_lib.save_picture(target, detect.draw(image, found, min_side=480))
    height, width = image.shape[:2]
    return {
        "file": str(path),
        "picture": str(target),
        "height": height,
        "width": width,
        "objects": detect.as_json(found),
    }


def process_video(path: pathlib.Path, target: pathlib.Path, detect: Detect) -> dict:
    """The same for every frame of a video.

    `frames` has one list of objects a frame, and `problems` a sentence where the video has fewer
    frames than its header says.  Frames of another size than the first are resized to it.
    """
    reader = cv2.VideoCapture(str(path))
    readable, frame = reader.read()
    if not readable:
        raise records.DataError(f"video {path} cannot be decoded; convert it to another format.")
    # Of the frame, not of the header: a video that is stored turned is decoded upright.
    height, width = frame.shape[:2]
    announced = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))  # 0 or less where it is not known
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise errors.UserError(f"cannot write the video {target}.")
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
    finally:  # what there is can be played, also after Ctrl-C
        writer.release()
        reader.release()
    problems = []
    if len(frames) < announced:
        problems.append(
            f"video {path} ends after {len(frames)} of the {announced} frames it should have"
        )
    return {
        "file": str(path),
        "picture": str(target),
        "height": height,
        "width": width,
        "frames_per_second": rate,
        "problems": problems,
        "frames": frames,
    }


def names_of(saved: Sequence[str] | None, config) -> tuple[str, ...]:
    """Class names of the checkpoint, else of the config, else numbers."""
    names = tuple(saved or config.data.class_names)
    return names or tuple(f"class {i}" for i in range(contract.num_classes(config)))


def canvas_of(size: tuple[int, int], data) -> tuple[int, int]:
    """The smallest canvas of those on which a picture of (height, width) px is largest.

    Of a letterbox the rounded sides decide, as in YOLOv5's `detect.py`: 820x1024 px fit on 512x640.
    """
    rule = programs.resize_rule(data, "demo")
    if rule["resize"] != "letterbox":
        groups = loader.group_by_canvas([size], data.canvases)
        return next(c for c, group in zip(data.canvases, groups) if len(group))

    def smaller_picture_then_larger_canvas(canvas):
        sides = transforms.letterbox_sides(size, canvas, rule["rounding"])
        return -math.prod(sides), math.prod(canvas)

    return min(data.canvases, key=smaller_picture_then_larger_canvas)


if __name__ == "__main__":
    errors.run_main(main)

"""The peers of `benchmarks.loader`: other loaders that do the same work, if installed.

    python -m benchmarks.loader_peers '{"peer": "torchvision", "data": "FOLDER", "workers": 0,
        "batch": 8, "batches": 16, "one_core": true}'

Runs one peer on the data that `benchmarks.loader` laid out in a folder, under `benchmarks.turns`;
if a package is missing, it exits with a one-line message.  It imports nothing of detlab, so any
Python with the packages can run it.  All packages are optional.

torchvision's transforms run in PyTorch's DataLoader: JPEG decoder, resize, flip, padding to a batch
of uint8 on the canvases of the 1x recipe.  yolov5 is the package's own data set and collation with
its default hyper-parameters.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import peers, turns

SIDE = 640  # px of yolov5's images
LIMITS = 800, 1333  # px, shorter and longer side of the 1x recipe
CANVAS = 800, 1344  # px of a wide image; a tall one has it turned


class Task(NamedTuple):
    """What a peer loads, and how."""

    peer: str
    data: str  # folder with `coco` and `yolo`
    workers: int  # 0: in the main process
    batch: int
    batches: int  # per turn
    one_core: bool


class Peer(NamedTuple):
    """A loader to measure."""

    make: Callable  # (Task) -> (function that starts a turn's batches, versions)
    install: str  # what to install


def main(arguments: Sequence[str]) -> None:
    task = Task(**json.loads(arguments[0]))
    keep_to_one_core(task.one_core)
    batches, versions = PEERS[task.peer].make(task)
    serve(batches, task, versions)


def keep_to_one_core(one: bool) -> None:
    """Keeps this process to its first core if `one`, where the system can."""
    if one and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def serve(batches: Callable[[], Iterator], task: Task, ready: dict) -> None:
    """Runs `turns.serve`; a turn reads a whole stream, and its figures come last.

    A turn is measured from the arrival of its first batch to that of its last one, so the start of
    worker processes does not count.  The last figures are `images_s`, images per second, and
    `cpu_ms`, processor ms per image of this process and its workers; both have a number per turn.

    Args:
      batches: starts a stream of `task.batches` batches of `task.batch` images.
      task: any tuple with these fields.
      ready: see `turns.serve`.
    """
    figures = {"images_s": [], "cpu_ms": []}

    def run():
        at = []
        for number, _ in enumerate(batches()):
            if number in (0, task.batches - 1):
                at.append((time.perf_counter(), turns.processor_seconds()))
        (start, used), (end, used_at_end) = at
        images = task.batch * (task.batches - 1)
        figures["images_s"].append(images / (end - start))
        figures["cpu_ms"].append(1000 * (used_at_end - used) / images)

    # Without the warm-up.
    turns.serve(run, ready, lambda: {name: values[1:] for name, values in figures.items()})


# ------------------------------------------------------------------------------------------------
# PyTorch's DataLoader with torchvision's transforms


def torchvision(task: Task):
    torch, vision = peers.load("torch"), peers.load("torchvision")
    v2 = peers.load("torchvision.transforms.v2")
    torch.set_num_threads(1)
    folder = pathlib.Path(task.data, "coco")
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    objects = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        objects[entry["image_id"]].append((*entry["bbox"], entry["category_id"]))
    shorter, longer = LIMITS
    change = v2.Compose([v2.Resize(shorter, max_size=longer), v2.RandomHorizontalFlip(0.5)])
    pictures = Pictures(torch, vision, folder / "train2017", content["images"], objects, change)
    order = np.random.default_rng(0)
    tall = np.array([image["height"] > image["width"] for image in content["images"]])
    groups = [group for group in (np.flatnonzero(tall), np.flatnonzero(~tall)) if len(group)]

    def batches():
        rows = []  # wide and tall images in turn, as many as there are
        share = [len(group) / len(tall) for group in groups]
        for number in order.choice(len(groups), task.batches, p=share):
            rows.append(order.choice(groups[number], task.batch).tolist())
        return torch.utils.data.DataLoader(
            pictures,
            batch_sampler=rows,
            num_workers=task.workers,
            collate_fn=pictures.collate,
            multiprocessing_context="fork" if task.workers else None,
        )

    versions = f"torchvision {vision.__version__}, PyTorch {torch.__version__}"
    return batches, {"version": versions}


class Pictures:
    """A data set for DataLoader: images with their boxes, uint8 throughout."""

    def __init__(self, torch, vision, folder, images, objects, change):
        self.torch, self.vision, self.folder = torch, vision, folder
        self.images, self.objects, self.change = images, objects, change

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i: int):
        entry = self.images[i]
        io, tensors = self.vision.io, self.vision.tv_tensors
        path = str(self.folder / entry["file_name"])
        image = io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)
        found = self.torch.tensor(self.objects[entry["id"]], dtype=self.torch.float32)
        found = found.reshape(-1, 5)
        boxes = tensors.BoundingBoxes(
            found[:, :4], format="XYWH", canvas_size=(entry["height"], entry["width"])
        )
        return *self.change(tensors.Image(image), boxes), found[:, 4]

    def collate(self, rows: list):
        height, width = rows[0][0].shape[1:]
        canvas = CANVAS if width >= height else CANVAS[::-1]
        batch = self.torch.zeros((len(rows), 3, *canvas), dtype=self.torch.uint8)
        for picture, (image, _, _) in zip(batch, rows, strict=True):
            picture[:, : image.shape[1], : image.shape[2]] = image
        return batch, [boxes for _, boxes, _ in rows], [labels for _, _, labels in rows]


# ------------------------------------------------------------------------------------------------
# The package yolov5


def yolov5(task: Task):
    torch, package, cv2 = peers.load("torch"), peers.load("yolov5"), peers.load("cv2")
    yaml = peers.load("yaml")
    folder = pathlib.Path(package.__file__).parent
    later = (folder / "utils" / "dataloaders.py").exists()
    module = peers.load(f"yolov5.utils.{'dataloaders' if later else 'datasets'}")
    files = sorted((folder / "data").rglob("hyp.scratch*.yaml"))
    chosen = next((path for path in files if path.stem.endswith("low")), files[0])
    hyper = yaml.safe_load(chosen.read_text(errors="ignore"))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = str(pathlib.Path(task.data, "yolo", "images"))
    data = module.LoadImagesAndLabels(images, SIDE, task.batch, augment=True, hyp=hyper)

    def batches():
        number = torch.randint(len(data), (task.batches, task.batch)).tolist()
        return torch.utils.data.DataLoader(
            data,
            batch_sampler=number,
            num_workers=task.workers,
            collate_fn=module.LoadImagesAndLabels.collate_fn,
            multiprocessing_context="fork" if task.workers else None,
        )

    versions = (package.__version__, torch.__version__, cv2.__version__)
    return batches, {"version": "yolov5 {}, PyTorch {}, OpenCV {}".format(*versions)}


PEERS = {
    "torchvision": Peer(torchvision, "torch torchvision"),
    "yolov5": Peer(yolov5, 'torch yolov5 "opencv-python-headless<5"'),
}


if __name__ == "__main__":
    main(sys.argv[1:])

"""How fast training images are loaded, and how many cores a GPU needs.

    python -m benchmarks.loader --output benchmarks/results/loader_cpu.json
    python -m benchmarks.loader --only 1x/coco --root data/coco --threads 1 --workers 0 4 8

Reads the batches of a training run (`data_sets.training_batches`) of shipped experiments, by recipe
and source: JPEGs in COCO's layout, the same in VOC's, or generated shapes.  Without --root the
photographs are made up: noise of all scales with patches of other noise, 640x480 px, one in four
turned, with a little fewer bytes than COCO's.  Decoding takes longer the more bytes a JPEG has, so
--root measures more exactly.

Each row has images per second and processor ms per image of all threads and workers, the medians of
the repeats.  One thread runs on one core.  From its processor time follow the cores that a GPU
needs, see `NEEDS`.  Several threads are measured without workers, workers with one thread each, and
only for recipes that have a peer.

Peers are measured in the same run if they are installed and are listed as absent if not: PyTorch's
DataLoader with torchvision's transforms, and the package yolov5.  --peer_python names another
Python that has them.  Peer and detlab take turns; ratios are detlab / peer of the processor time
per image, so below one detlab needs less.
"""

import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.loader(__doc__))  # --help needs no import below

import cv2
import numpy as np

from benchmarks import command, loader_peers, machine, turns
from detlab import data_sets, errors, files
from detlab.data import coco, records, voc


class Recipe(NamedTuple):
    """How images become a batch."""

    config: str  # shipped experiment
    sources: tuple[str, ...]
    peer: str = ""  # of benchmarks/loader_peers.py; "" for none


RECIPES = {
    "1x": Recipe("retinanet_coco:scratch", ("coco", "voc"), "torchvision"),
    "yolov5": Recipe("yolov5_coco:s", ("coco", "voc"), "yolov5"),
    "darknet": Recipe("darknet_coco:yolov4", ("coco",)),
    "ssd": Recipe("yolov3_coco:scratch", ("coco",)),  # mmdetection trains YOLOv3 as SSD
    "cornernet": Recipe("cornernet_coco", ("coco",)),
    "shapes": Recipe("retinanet_shapes", ("shapes",)),
}
ROWS = {f"{name}/{x}": (name, x) for name, recipe in RECIPES.items() for x in recipe.sources}
NEEDS = {"1x/coco": 220, "yolov5/coco": 600}  # images/s that a GPU may train on: assumed
NUM_CLASSES = 80


class Task(NamedTuple):
    """What a process started with `--serve` measures."""

    row: str  # of ROWS
    data: str  # folder that `lay_out` filled
    threads: int
    workers: int
    batch: int
    batches: int  # per turn
    one_core: bool


class Picture(NamedTuple):
    """An image of the data set."""

    path: pathlib.Path
    size: tuple[int, int]  # height, width px
    boxes: np.ndarray  # [n, 4] xyxy px
    labels: np.ndarray  # [n]


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args, overrides = cli.parse(arguments, flags.loader(__doc__))
    if args.serve:
        serve(Task(**json.loads(args.serve)), overrides)
        return
    if min(args.count, args.batch, args.repeats, *args.threads) < 1 or min(args.workers) < 0:
        raise errors.UserError(
            "--count, --batch, --repeats and --threads must be at least 1, --workers at least 0."
        )
    if args.batches < 2:
        raise errors.UserError("--batches must be at least 2: the first starts the clock.")
    names = command.choose(args.only, ROWS, "row")
    if args.output:
        command.make_folder(args.output.parent)
    with tempfile.TemporaryDirectory(prefix="loader") as folder:
        made_up = pathlib.Path(folder, "made_up")
        pictures = find(args.root, args.count) if args.root else make_up(made_up, args.count)
        lay_out(pictures, pathlib.Path(folder))
        data = describe(pictures, made_up=args.root is None)
        rows = {}
        print(header())
        for name in names:
            rows[name] = {"peer": RECIPES[ROWS[name][0]].peer or None, "measured": []}
            for threads, workers in forms(name, args):
                task = Task(
                    name, folder, threads, workers, args.batch, args.batches,
                    one_core=threads == 1 and workers == 0,
                )  # fmt: skip
                row = measure(task, args, overrides)
                rows[name] |= {key: row.pop(key) for key in ("config", "canvas")}
                rows[name]["measured"].append(row)
                print(line(name, row), flush=True)
                if args.output:  # after each row: all of them take long
                    on = machine.describe() | {"opencv": cv2.__version__}
                    result = {"machine": on, "data": data, "batch": args.batch, "rows": rows}
                    files.write_json(args.output, result | {"cores": cores(rows)})
    for name, needed in cores(rows).items():
        print(f"{name}: {needed['images_s']} images/s need {needed['detlab']} cores")


def forms(name: str, args) -> list[tuple[int, int]]:
    """(threads, workers) to measure: one thread, and more for the first source with a peer."""
    recipe, source = ROWS[name]
    if not RECIPES[recipe].peer or source != RECIPES[recipe].sources[0]:
        return [(min(args.threads), 0)]
    threads = [(threads, 0) for threads in args.threads if 0 in args.workers]
    return threads + [(1, workers) for workers in args.workers if workers]


def measure(task: Task, args, overrides: Mapping[str, Any]) -> dict:
    """Figures of a row, those of its peer as "peer", and their ratio."""
    words = [sys.executable, "-m", "benchmarks.loader", "--serve", json.dumps(task._asdict())]
    words += [f"--config.{key}={value}" for key, value in overrides.items()]
    row = {"threads": task.threads, "workers": task.workers}
    try:
        with turns.Worker(words) as own:
            row |= own.ready
            peer = start_peer(task, args.peer_python)
            if not isinstance(peer, turns.Worker):
                for _ in range(args.repeats):
                    own.run()
                return row | medians(own.close()) | {"peer": peer}
            with peer:
                for _ in range(args.repeats):
                    own.run(), peer.run()
                mine, theirs = own.close(), peer.close()
    except turns.Failed as error:
        raise errors.UserError(f"measuring {task.row} failed: {error}") from None
    pairs = zip(mine["cpu_ms"], theirs["cpu_ms"], strict=True)
    ratio = round(statistics.median(a / b for a, b in pairs), 3)
    return row | medians(mine) | {"peer": peer.ready | medians(theirs), "ratio": ratio}


def medians(figures: Mapping[str, Sequence[float]]) -> dict:
    return {
        name: round(statistics.median(figures[name]), 2 if name == "cpu_ms" else 1)
        for name in ("images_s", "cpu_ms")
    }


def start_peer(task: Task, python: str) -> turns.Worker | dict | None:
    """The peer's process, {"absent": why}, or None if there is none.  No peer has threads."""
    peer = RECIPES[ROWS[task.row][0]].peer
    if not peer or task.threads > 1:
        return None
    asked = loader_peers.Task(
        peer, task.data, task.workers, task.batch, task.batches, task.one_core
    )
    install = loader_peers.PEERS[peer].install
    return command.start_peer(python, "benchmarks.loader_peers", asked, install)


def serve(task: Task, overrides: Mapping[str, Any]) -> None:
    """Runs the turns of detlab's own loader."""
    loader_peers.keep_to_one_core(task.one_core)
    config = configured(task, overrides)
    source = data_sets.open_source(config, "train")
    done = 0

    def batches():
        nonlocal done
        start, done = done, done + task.batches
        return data_sets.training_batches(source, config, num_steps=done, start_step=start)

    name = RECIPES[ROWS[task.row][0]].config
    loader_peers.serve(batches, task, {"config": name, "canvas": list(config.data.canvases[0])})


def configured(task: Task, overrides: Mapping[str, Any]):
    """The config of a row, on the data of the task."""
    recipe, source = ROWS[task.row]
    config = config_lib.load(RECIPES[recipe].config, {})
    if source == "coco":
        config.data.root = str(pathlib.Path(task.data, "coco"))
    elif source == "voc":
        root = str(pathlib.Path(task.data, "voc"))
        config.data.update(source="voc", root=root, train_splits=("train",))
        config.model.num_classes = len(voc.CLASS_NAMES)
    config.data.update(read_threads=task.threads, workers=task.workers)
    config.train.batch_size = task.batch
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    return config


def cores(rows: Mapping[str, Any]) -> dict:
    """Cores that a GPU needs, from the processor time of one thread, by row of `NEEDS`."""
    found = {}
    for name, images_s in NEEDS.items():
        measured = rows.get(name, {"measured": ()})["measured"]
        for row in (x for x in measured if (x["threads"], x["workers"]) == (1, 0)):
            peer = row["peer"] if "ratio" in row else {}
            found[name] = {"images_s": images_s, "detlab": _cores(images_s, row["cpu_ms"])}
            if peer:
                found[name]["peer"] = _cores(images_s, peer["cpu_ms"])
    return found


def _cores(images_s: float, cpu_ms: float) -> float:
    return round(images_s * cpu_ms / 1000, 1)


# ------------------------------------------------------------------------------------------------
# The data


def find(root: pathlib.Path, count: int) -> list[Picture]:
    """The first images of a folder in COCO's layout.

    Raises:
      UserError: it has no such images or annotations.
    """
    names = ("train2017", "val2017")
    name = next((name for name in names if (root / name).is_dir()), names[0])
    try:
        source = coco.Coco(root / name, root / "annotations" / f"instances_{name}.json")
    except records.DataError as error:
        raise errors.UserError(f"--root {root}: {error}.") from error
    pictures = []
    for i in range(min(count, len(source))):
        found = source.annotation(i)
        path = pathlib.Path(source.name(i)).resolve()
        pictures.append(Picture(path, source.size(i), found["boxes"], found["labels"]))
    return pictures


def make_up(folder: pathlib.Path, count: int) -> list[Picture]:
    """Writes JPEGs that are about as hard to decode as photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        size = (640, 480) if number % 4 == 3 else (480, 640)
        image = texture(rng, size)
        objects = int(rng.integers(2, 13))
        corner = rng.uniform(0, 0.7, (objects, 2))
        sides = np.exp(rng.uniform(np.log(0.05), np.log(0.6), (objects, 2)))
        boxes = np.concatenate([corner, np.minimum(corner + sides, 1)], axis=1)
        boxes = np.rint(boxes * np.tile(size[::-1], 2)).astype(int)
        for x1, y1, x2, y2 in boxes:
            patch, mask = texture(rng, (y2 - y1, x2 - x1)), np.zeros((y2 - y1, x2 - x1), np.uint8)
            half = (x2 - x1) // 2, (y2 - y1) // 2
            cv2.ellipse(mask, half, half, 0, 0, 360, 1, -1)
            image[y1:y2, x1:x2][mask > 0] = patch[mask > 0]
        path = folder / f"{number:06}.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        pictures.append(Picture(path, size, boxes, rng.integers(0, NUM_CLASSES, objects)))
    return pictures


def texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """[*size, 3] uint8: noise whose strength is proportional to its scale, as in photographs."""
    height, width = size
    image = rng.uniform(60, 190, 3).astype(np.float32) + np.zeros((*size, 3), np.float32)
    detail = rng.uniform(0.3, 1.7)
    for scale in (64, 32, 16, 8, 4, 2, 1):
        grid = (-(-height // scale) + 1, -(-width // scale) + 1)
        grey = rng.normal(0, 1, (*grid, 1)) + rng.normal(0, 0.3, (*grid, 3))
        strength = 5 * scale**0.5 * (detail if scale < 16 else 1)
        image += strength * cv2.resize(grey.astype(np.float32), (width, height))
    return np.clip(image, 0, 255).astype(np.uint8)


def lay_out(pictures: Sequence[Picture], folder: pathlib.Path) -> None:
    """Writes annotations for each reader: `coco`, `voc` and `yolo`, with links to the images."""
    images, objects, names = [], [], []
    places = [
        folder / "coco" / "train2017",
        folder / "voc" / "JPEGImages",
        folder / "yolo" / "images",
    ]
    texts = [folder / "voc" / "Annotations", folder / "yolo" / "labels"]
    splits = folder / "voc" / "ImageSets" / "Main"
    for new in (*places, *texts, splits, folder / "coco" / "annotations"):
        new.mkdir(parents=True)
    for number, (path, (height, width), boxes, labels) in enumerate(pictures):
        name = f"{number:06}"
        names.append(name)
        for place in places:
            (place / f"{name}.jpg").symlink_to(path)
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        xml, rows = [], []
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            w, h = x2 - x1, y2 - y1
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            sides = "".join(f"<{side}>{x + 1}</{side}>" for side, x in corners)
            kind = voc.CLASS_NAMES[label % len(voc.CLASS_NAMES)]
            xml.append(f"<object><name>{kind}</name><bndbox>{sides}</bndbox></object>")
            centre = (x1 + w / 2) / width, (y1 + h / 2) / height
            rows.append(f"{label} {centre[0]:.6f} {centre[1]:.6f} {w / width:.6f} {h / height:.6f}")
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (texts[0] / f"{name}.xml").write_text(f"<annotation>{size}{''.join(xml)}</annotation>")
        (texts[1] / f"{name}.txt").write_text("\n".join(rows))
    (splits / "train.txt").write_text("\n".join(names))
    categories = [{"id": k, "name": f"class {k}"} for k in range(NUM_CLASSES)]
    files.write_json(
        folder / "coco" / "annotations" / "instances_train2017.json",
        {"images": images, "annotations": objects, "categories": categories},
    )


def describe(pictures: Sequence[Picture], made_up: bool) -> dict:
    """Facts about the images, for the report."""
    kib = [picture.path.stat().st_size / 1024 for picture in pictures]
    pixels = [picture.size[0] * picture.size[1] for picture in pictures]
    return {
        "made_up": made_up,
        "images": len(pictures),
        "mean_kib": round(statistics.mean(kib)),
        "mean_megapixels": round(statistics.mean(pixels) / 1e6, 3),
        "mean_objects": round(statistics.mean(len(picture.boxes) for picture in pictures), 1),
    }


# ------------------------------------------------------------------------------------------------
# The table


def header() -> str:
    return (
        f"{'recipe/source':16} {'threads':>7} {'workers':>7} {'images/s':>9} {'cpu ms':>7}"
        "  peer: images/s, cpu ms, ratio of cpu ms"
    )


def line(name: str, row: Mapping[str, Any]) -> str:
    """One line of the table."""
    text = (
        f"{name:16} {row['threads']:7} {row['workers']:7} {row['images_s']:9.1f}"
        f" {row['cpu_ms']:7.2f}"
    )
    peer = row["peer"]
    if not peer:
        return text
    if "absent" in peer:
        return f"{text}  {peer['absent']}"
    version = peer["version"].partition(",")[0]
    return f"{text}  {version}: {peer['images_s']:.1f}, {peer['cpu_ms']:.2f}, {row['ratio']:.2f}"


if __name__ == "__main__":
    errors.run_main(main)

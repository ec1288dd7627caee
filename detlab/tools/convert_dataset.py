r"""Converts any data that detlab reads to COCO's, VOC's or YOLO's form, and compares the result.

    python -m detlab.tools.convert_dataset --config retinanet_voc --config.data.root=VOCdevkit \
        --to coco --output voc_as_coco --check
    python -m detlab.tools.convert_dataset --images val2017 --annotations instances.json \
        --to yolo --output coco_as_yolo --check

Classes are numbered in the order of config.data.class_names: from 1 in COCO's form, from 0 in
YOLO's.  What becomes of ignored objects: iscrowd 1 in COCO's form (of VOC, `ignore` and
`difficult`), difficult 1 in VOC's, nothing in YOLO's, which has no mark for them.  Image files keep
their names below OUTPUT/images (VOC: JPEGImages), as links, copies or not at all.  Generated
pictures are written as PNG.
"""

from detlab import cli
from detlab.tools import data_flags

if __name__ == "__main__":
    cli.answer_first(data_flags.convert_dataset(__doc__))  # --help needs no import below

import collections
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from detlab import errors, files, progress
from detlab import text as text_lib
from detlab.data import coco, coco_creator, records, voc, wider
from detlab.metrics import tables
from detlab.tools import frame, images
from detlab.viz import boxes as draw_lib

EXACT = 1e-3  # px: boxes of forms with fractions agree within this


class Part(NamedTuple):
    """A part of the data: its images that can be converted, under their names in the result."""

    name: str  # train or eval
    source: Any
    file_names: list[str]  # with suffix and folders


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, data_flags.convert_dataset(__doc__))
    config = images.config_of(args, overrides)
    names = images.parts_of(args)
    described = {name: images.describe(config, name) for name in names}
    output = frame.Output("convert_dataset", args, config, described)
    sources = {name: images.open_part(config, name) for name in names}
    classes = {source.class_names for source in sources.values()}
    if len(classes) > 1:
        raise errors.UserError(
            f"the parts have different classes, {' and '.join(', '.join(c) for c in classes)}; set"
            " config.data.class_names, or convert them one by one with --splits."
        )
    parts = name_files(sources, args.limit)
    check_names(parts, args.to)
    write = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[args.to]
    results = {}
    for part in parts:
        marks = ("ignore", "difficult") if config.data.source == "voc" else ("iscrowd",)
        dropped = write(part, output.folder, marks)
        put_files(part, output.folder / folder_of_images(args.to), args.files)
        results[part.name] = count(part, dropped)
        if args.check:
            results[part.name]["check"] = compare(part, output.folder, args.to)
    if args.to == "yolo":
        write_yolo_yaml(parts, output.folder)
    output.close(results, report(results, args.to))


def folder_of_images(form: str) -> str:
    """The folder below the output that holds the images."""
    return "JPEGImages" if form == "voc" else "images"


def name_files(sources: dict[str, Any], limit: int | None) -> list[Part]:
    """The parts with the names that their images get: those of the files, below their folder.

    The folder is the deepest that has the images of all parts.  An image that several parts have
    gets one name.
    """
    kept = {name: range(min(len(source), limit or len(source))) for name, source in sources.items()}
    paths = {name: [sources[name].path(i) for i in kept[name]] for name in sources}
    stems = {name: images.file_names(sources[name], kept[name]) for name in sources}
    folders = {os.path.dirname(os.path.abspath(p)) for of in paths.values() for p in of if p}
    common = os.path.commonpath(folders) if folders else ""
    parts = []
    for name, source in sources.items():
        file_names = [
            pathlib.Path(os.path.relpath(os.path.abspath(path), common)).as_posix()
            if path
            else f"{stem}.png"
            for path, stem in zip(paths[name], stems[name], strict=True)
        ]
        parts.append(Part(name, source, file_names))
    return parts


def check_names(parts: Sequence[Part], form: str) -> None:
    """Rejects images of one part whose files in the result would be the same.

    Raises:
      UserError: two images have one name, in VOC's and YOLO's form whatever their suffixes.
    """
    for part in parts:
        taken = {}
        for i, name in enumerate(part.file_names):
            key = name if form == "coco" else name.rpartition(".")[0]
            first = taken.setdefault(key, i)
            if first != i:
                raise errors.UserError(
                    f"{part.name} data: {part.source.name(first)} and {part.source.name(i)} would"
                    f" both be {key} in the result; rename one, or leave one out."
                )


def put_files(part: Part, folder: pathlib.Path, how: str) -> None:
    """Links or copies the image files; pictures without a file are written as PNG.

    Raises:
      UserError: a file cannot be written.
    """
    if how == "none":
        return
    with progress.bar(len(part.file_names), f"{part.name} images", "img", leave=False) as bar:
        for i, name in enumerate(part.file_names):
            target, path = folder / name, part.source.path(i)
            with files.writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if path is None:
                    draw_lib.save(target, part.source[i]["image"])
                elif not os.path.lexists(target):
                    if how == "link":
                        target.symlink_to(os.path.abspath(path))
                    elif os.path.exists(path):
                        shutil.copyfile(path, target)
            bar.update()


def count(part: Part, dropped: collections.Counter) -> dict[str, Any]:
    """How many images and objects went in and came out, and why others did not."""
    source = part.source
    objects = [source.annotation(i) for i in range(len(part.file_names))]
    labels = np.concatenate([np.zeros(0, int), *(record["labels"] for record in objects)])
    numbers = np.bincount(labels, minlength=len(source.class_names))
    lost = {f"reading: {name}": n for name, n in records.counts(source).items() if n}
    return {
        "images": len(part.file_names),
        "objects_read": len(labels),
        "objects_written": len(labels) - sum(dropped.values()),
        "ignored": sum(int(record["ignore"].sum()) for record in objects),
        "classes": dict(zip(source.class_names, numbers.tolist(), strict=True)),
        "dropped": dict(dropped),
        "reading": lost,
        "problems": list(source.problems),
    }


# ------------------------------------------------------------------------------------------------
# The three forms


def write_coco(part: Part, folder: pathlib.Path, marks: Sequence[str]) -> collections.Counter:
    """Writes annotations/instances_PART.json; returns why objects were dropped.

    Args:
      marks: the keys that are 1 for an ignored object.
    """
    source = part.source
    creator = coco_creator.CocoCreator(source.class_names)
    for i, name in enumerate(part.file_names):
        height, width = source.size(i)
        number = creator.add_image(name, height, width, source_id=source.image_id(i))
        record = source.annotation(i)
        rows = zip(
            record["boxes"],
            record["labels"].tolist(),
            record["ignore"].tolist(),
            record["area"].tolist(),
            strict=True,
        )
        for k, (box, label, ignored, area) in enumerate(rows):
            more = {mark: int(ignored) for mark in marks if mark != "iscrowd"}
            if "flags" in record:
                more["attributes"] = dict(
                    zip(wider.FLAGS, record["flags"][k].tolist(), strict=True)
                )
            crowd = ignored and "iscrowd" in marks
            creator.add_box(number, source.class_names[label], box, crowd, area, **more)
    files.write_text(
        folder / "annotations" / f"instances_{part.name}.json", json.dumps(creator.content)
    )
    return creator.dropped


def voc_box(box, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """A box as VOC writes it: whole px from 1, xmax and ymax within the image.

    It is the inverse of the reader (`detlab.data.voc`), which subtracts 1 from all four, so the
    boxes of VOC's own files come back as they were.

    Args:
      box: [4] xyxy px, from 0.
      size: (height, width) of the image, px.
    Returns:
      xmin, ymin, xmax, ymax; None if no whole px is left.
    """
    height, width = size
    whole = np.floor(np.asarray(box, np.float64) + 1.5).astype(int)
    x1, y1, x2, y2 = np.clip(whole, 1, (width, height, width, height)).tolist()
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def write_voc(part: Part, folder: pathlib.Path, marks: Sequence[str]) -> collections.Counter:
    """Writes Annotations/*.xml and ImageSets/Main/PART.txt; returns why objects were dropped.

    `marks` is not read: an ignored object is difficult.
    """
    source, dropped, names = part.source, collections.Counter(), []
    for i, file_name in enumerate(part.file_names):
        size, record = source.size(i), source.annotation(i)
        name = pathlib.PurePosixPath(file_name).with_suffix("").as_posix()
        root = ElementTree.Element("annotation")
        _add(root, "folder", "JPEGImages")
        _add(root, "filename", pathlib.PurePosixPath(file_name).name)
        about = ElementTree.SubElement(root, "size")
        for key, value in (("width", size[1]), ("height", size[0]), ("depth", 3)):
            _add(about, key, value)
        _add(root, "segmented", 0)
        rows = zip(
            record["boxes"], record["labels"].tolist(), record["ignore"].tolist(), strict=True
        )
        for box, label, ignored in rows:
            corners = voc_box(box, size)
            if corners is None:
                dropped["no whole px is left"] += 1
                continue
            element = ElementTree.SubElement(root, "object")
            _add(element, "name", source.class_names[label])
            _add(element, "pose", "Unspecified")
            _add(element, "truncated", 0)
            _add(element, "difficult", int(ignored))
            bndbox = ElementTree.SubElement(element, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
                _add(bndbox, key, value)
        ElementTree.indent(root, "\t")
        files.write_text(
            folder / "Annotations" / f"{name}.xml", ElementTree.tostring(root, "unicode") + "\n"
        )
        names.append(name)
    files.write_text(folder / "ImageSets" / "Main" / f"{part.name}.txt", "\n".join(names) + "\n")
    return dropped


def _add(parent, tag, value):
    ElementTree.SubElement(parent, tag).text = str(value)


def write_yolo(part: Part, folder: pathlib.Path, marks: Sequence[str]) -> collections.Counter:
    """Writes labels/*.txt and PART.txt, the list of images; returns why objects were dropped.

    A line is `class cx cy w h`, the class from 0, the rest as parts of the image's sides.  `marks`
    is not read: ignored objects are dropped.
    """
    source, dropped, listed = part.source, collections.Counter(), []
    for i, file_name in enumerate(part.file_names):
        (height, width), record = source.size(i), source.annotation(i)
        lines = []
        for box, label, ignored in zip(
            record["boxes"].astype(np.float64), record["labels"], record["ignore"], strict=True
        ):
            if ignored:
                dropped["ignored, which the form cannot say"] += 1
                continue
            x1, y1, x2, y2 = box / (width, height, width, height)
            numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            lines.append(f"{label} " + " ".join(f"{x:.9f}" for x in numbers) + "\n")
        name = pathlib.PurePosixPath(file_name).with_suffix(".txt")
        files.write_text(folder / "labels" / name, "".join(lines))
        listed.append(f"./images/{file_name}\n")
    files.write_text(folder / f"{part.name}.txt", "".join(listed))
    return dropped


def write_yolo_yaml(parts: Sequence[Part], folder: pathlib.Path) -> None:
    """Writes data.yaml: the lists of images and the names of the classes."""
    lines = [f"path: {json.dumps(str(folder.resolve()), ensure_ascii=False)}"]
    lines += [f"{'val' if part.name == 'eval' else 'train'}: {part.name}.txt" for part in parts]
    lines += ["names:"]
    lines += [
        f"  {label}: {json.dumps(name, ensure_ascii=False)}"
        for label, name in enumerate(parts[0].source.class_names)
    ]
    files.write_text(folder / "data.yaml", "\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------------
# Reading back


def compare(part: Part, folder: pathlib.Path, form: str) -> dict[str, Any]:
    """Reads a converted part back and compares it with its source, object by object.

    Returns:
      `boxes` compared, how many of them agree `within_1e-3_px`, and the `largest_difference`, px.
    Raises:
      UserError: an image, a class, a mark or a number of objects differs, or a box by more than the
        form allows: 1e-3 px, and 1 px in VOC's whole numbers.
    """
    read = {"coco": _back_from_coco, "voc": _back_from_voc, "yolo": _back_from_yolo}[form]
    try:
        back = read(part, folder)
    except records.DataError as error:
        raise errors.UserError(f"the check failed: {error}.") from error
    largest, exact, number = 0.0, 0, 0
    for i, file_name in enumerate(part.file_names):
        size, record = part.source.size(i), part.source.annotation(i)
        keep = _kept(record, size, form)
        boxes, labels, ignore = back(i)
        same = np.array_equal(labels, record["labels"][keep]) and np.array_equal(
            ignore, record["ignore"][keep]
        )
        if not same:
            raise errors.UserError(
                f"the check failed: {file_name} came back with {len(labels)} objects instead of"
                f" {int(keep.sum())}, or with other classes or marks."
            )
        expected = record["boxes"][keep]
        if form == "voc":
            expected = np.clip(expected, 0, np.tile(size[::-1], 2))
        away = np.abs(boxes - expected).max(axis=1, initial=0)
        number, exact = number + len(away), exact + int((away <= EXACT).sum())
        largest = max(largest, float(away.max(initial=0)))
        allowed = 1 if form == "voc" else 0
        if largest > allowed + EXACT:
            raise errors.UserError(
                f"the check failed: a box of {file_name} came back {largest:.4f} px away."
            )
    return {"boxes": number, "within_1e-3_px": exact, "largest_difference": largest}


def _kept(record, size, form):
    """[n] bool: the objects that the form can hold."""
    if form == "yolo":
        return ~record["ignore"]
    if form == "voc":
        return np.array([voc_box(box, size) is not None for box in record["boxes"]], bool)
    return (record["boxes"][:, 2:] > record["boxes"][:, :2]).all(axis=1)


def _from_source(source):
    """Image -> boxes, labels, ignore of a source."""
    keys = ("boxes", "labels", "ignore")
    return lambda i: [source.annotation(i)[key] for key in keys]


def _back_from_coco(part, folder):
    images_at = folder / "images"
    images_at.mkdir(exist_ok=True)
    file = folder / "annotations" / f"instances_{part.name}.json"
    return _from_source(coco.Coco(images_at, file, min_side=0, exif="stored"))


def _back_from_voc(part, folder):
    return _from_source(voc.Voc(folder, part.name, part.source.class_names, exif="stored"))


def _back_from_yolo(part, folder):
    def read(i):
        height, width = part.source.size(i)
        name = pathlib.PurePosixPath(part.file_names[i]).with_suffix(".txt")
        lines = (folder / "labels" / name).read_text().splitlines()
        rows = np.array([line.split() for line in lines], np.float64).reshape(-1, 5)
        centre, half = rows[:, 1:3], rows[:, 3:] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) * np.tile((width, height), 2)
        return boxes, rows[:, 0].astype(int), np.zeros(len(rows), bool)

    return read


def report(results: dict[str, Any], form: str) -> str:
    """The counts as text."""
    header = ["part", "images", "objects read", "written", "ignored", "within 1e-3 px", "largest"]
    rows, sentences = [], []
    for name, found in results.items():
        check = found.get("check")
        rows.append(
            [name, str(found["images"]), str(found["objects_read"]), str(found["objects_written"])]
            + [str(found["ignored"])]
            + (
                [
                    f"{check['within_1e-3_px']} of {check['boxes']}",
                    f"{check['largest_difference']:.4f} px",
                ]
                if check
                else ["", ""]
            )
        )
        sentences += [f"{name}: dropped: {n}, {reason}" for reason, n in found["dropped"].items()]
        sentences += [f"{name}: {problem}" for problem in found["problems"]]
        classes = text_lib.listed((f"{k} {n}" for k, n in found["classes"].items()), 20)
        sentences.append(f"{name}: objects read: {classes}")
    if form == "voc" and any("check" in found for found in results.values()):
        sentences.append(
            "VOC's form has whole px within the image: other boxes are rounded, by half a px, and"
            " by up to 1 px at the right and lower edge"
        )
    return "\n".join([tables.text_table(header, rows), *sentences])


if __name__ == "__main__":
    errors.run_main(main)

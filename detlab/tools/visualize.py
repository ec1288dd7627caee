r"""Draws annotations as the file has them, with outlines and keypoints, also beside predictions.

    python -m detlab.tools.visualize --images val2017 --annotations instances.json --output shown
    python -m detlab.tools.visualize --config retinanet_voc --config.data.root=VOCdevkit \
        --output shown --class dog --predictions predictions.json

--class, --size and --only_ignored choose objects and the images that have such.  Ignored (crowd,
difficult) boxes are grey and dashed.  Of WIDER FACE the flags that are set are written too.
"""

from detlab import cli
from detlab.tools import data_flags

if __name__ == "__main__":
    cli.answer_first(data_flags.visualize(__doc__))  # --help needs no import below

import collections
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from detlab import data_sets, errors, evaluation, files
from detlab import predictions as predictions_lib
from detlab.data import coco_json, records, wider
from detlab.metrics import tables
from detlab.tools import frame, images
from detlab.viz import boxes as draw_lib
from detlab.viz import masks as mask_lib

CELL, PAIR = (300, 400), (330, 800)  # height, width px of a picture, of two on the sheet


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, data_flags.visualize(__doc__))
    if not 0 <= args.threshold <= 1:
        raise errors.UserError(f"--threshold is {args.threshold:g}; it must be from 0 to 1.")
    config = images.config_of(args, overrides)
    source = images.open_part(config, args.part)
    data_sets.report_problems(source, args.part)
    positions = images.choose(source, args)
    found = _predictions(args, source) if args.predictions else None
    raw = None if args.boxes_only else Raw.of(config, args.part, source)
    name = images.describe(config, args.part)
    output = frame.Output("visualize", args, config, {"data": name, "images": len(source)})

    shown, cells = [], []
    names = files.unique_names(images.file_names(source, positions))
    for i, file in zip(positions, names, strict=True):
        try:
            image = source[i]["image"]
        except records.DataError as error:
            print(f"not drawn: {error}")
            continue
        objects = objects_of(source, i, raw, image.shape[:2])
        objects = objects.select(images.chosen_objects(objects.record, source.class_names, args))
        picture = draw(image, objects, source.class_names)
        told = {"name": source.name(i), "id": source.image_id(i), "picture": f"{file}.jpg"}
        told["objects"] = [
            {**entry, "outline_px": mask, "keypoints": points}
            for entry, mask, points in zip(
                images.class_and_box(objects.record, source.class_names),
                [None if mask is None else int(mask.sum()) for mask in objects.masks],
                [None if p is None else int((p[:, 2] > 0).sum()) for p in objects.keypoints],
                strict=True,
            )
        ]
        if found is not None:
            kept = _above(found.get(source.image_id(i)), args, source.class_names)
            beside = draw_lib.draw(
                image, kept["boxes"], kept["labels"], source.class_names, scores=kept["scores"]
            )
            picture = draw_lib.side_by_side(
                {"annotations": picture, f"predictions from {args.threshold:g}": beside}
            )
            told["predictions"] = [
                {"class": source.class_names[label], "box": box, "score": round(score, 6)}
                for label, box, score in zip(
                    *(kept[k].tolist() for k in ("labels", "boxes", "scores")), strict=True
                )
            ]
        output.image(picture, f"{file}.jpg")
        cells.append(picture)
        shown.append(told)
    if not shown:
        raise errors.UserError(f"none of the {len(positions)} chosen images can be read.")
    columns, cell = (4, CELL) if found is None else (2, PAIR)
    output.image(draw_lib.contact_sheet(cells, columns, cell), "visualize.jpg")
    results = {"images": shown, "not_drawn": dict(raw.not_drawn) if raw else {}}
    output.close(results, report(shown, results["not_drawn"]))


class Shown(NamedTuple):
    """The n objects of an image that are drawn."""

    record: dict[str, Any]  # boxes, labels, ignore, area
    captions: list[str]
    masks: list[np.ndarray | None]
    keypoints: list[np.ndarray | None]  # [K, 3] each
    skeletons: list[Sequence[tuple[int, int]]]

    def select(self, keep) -> "Shown":
        """The objects in keep [n] bool."""
        chosen = np.flatnonzero(keep)
        lists = ([column[k] for k in chosen] for column in self[1:])
        return Shown(records.select_objects(self.record, keep), *lists)


def objects_of(source: Any, i: int, raw: "Raw | None", size: tuple[int, int]) -> Shown:
    """The objects of image i of (height, width) px, from the raw file if there is one."""
    if raw is not None:
        return raw.objects(source.image_id(i), size)
    record = source.annotation(i)
    names = [source.class_names[label] for label in record["labels"]]
    nothing = [None] * len(names)
    if "flags" in record:
        names = [
            " ".join([name, *(f"{k} {v}" for k, v in zip(wider.FLAGS, flags, strict=True) if v)])
            for name, flags in zip(names, record["flags"].tolist(), strict=True)
        ]
    return Shown(record, names, nothing, nothing, [()] * len(names))


class Raw:
    """The objects of a COCO file as they are written, by image.

    `not_drawn` counts what cannot be drawn, by reason.
    """

    def __init__(self, content: dict[str, list], category_labels: dict[Any, int]):
        self.not_drawn = collections.Counter()
        self._labels = category_labels
        self._names = {coco_json.whole(c["id"]): str(c["name"]) for c in content["categories"]}
        self._skeletons = {
            coco_json.whole(c["id"]): [(a - 1, b - 1) for a, b in c.get("skeleton") or ()]
            for c in content["categories"]
        }
        self._of_image = collections.defaultdict(list)
        for annotation in content["annotations"]:
            if coco_json.fault(annotation, coco_json.OBJECT):
                self.not_drawn["entries without a usable id or box"] += 1
                continue
            self._of_image[coco_json.whole(annotation["image_id"])].append(annotation)

    @classmethod
    def of(cls, config: config_dict.ConfigDict, part: str, source: Any) -> "Raw | None":
        """Reads the file of a part; None if the data have no such file, or several."""
        if config.data.source != "coco" or (part == "train" and config.data.train_also):
            return None
        file = pathlib.Path(config.data.root) / config.data[f"{part}_annotations"]
        content = coco_json.read(file)  # the source has read it: it is usable
        categories = coco_json.categories(content, file)
        number = {name: label for label, name in enumerate(source.class_names)}
        renamed = dict(config.data.rename_classes)
        labels = {
            key: number.get(renamed.get(name, name), -1) for key, name in categories.name_of.items()
        }
        return cls(content, labels)

    def objects(self, image_id: Any, size: tuple[int, int]) -> Shown:
        """The objects of chosen classes of an image of (height, width) px."""
        entries = [
            entry
            for entry in self._of_image[image_id]
            if self._labels.get(coco_json.whole(entry["category_id"]), -1) >= 0
        ]
        ids = [coco_json.whole(entry["category_id"]) for entry in entries]
        flags = coco_json.Flags()
        xywh = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        areas = [entry.get("area") for entry in entries]
        record = {
            "boxes": boxes.astype(np.float32),
            "labels": np.array([self._labels[key] for key in ids], np.int32),
            "ignore": np.array([flags.ignores(entry) for entry in entries], bool),
            "area": np.array(
                [
                    a if coco_json.given(a) else w * h
                    for a, (_, _, w, h) in zip(areas, xywh, strict=True)
                ],
                np.float32,
            ),
        }
        masks = [self._mask(entry.get("segmentation"), size) for entry in entries]
        points = [self._keypoints(entry.get("keypoints")) for entry in entries]
        skeletons = [self._skeletons[key] for key in ids]
        return Shown(record, [self._names[key] for key in ids], masks, points, skeletons)

    def _mask(self, outline, size):
        """[H, W] bool of polygons or run lengths; None if there is no outline or it is unusable."""
        if not outline:
            return None
        from pycocotools import mask as coco_mask  # imported late, so programs start without it

        # Checked first: pycocotools reads 4 numbers as a box, and wrong lengths beyond their end.
        if isinstance(outline, dict):
            counts = outline.get("counts")
            usable = isinstance(counts, str) or (_are_numbers(counts) and min(counts) >= 0)
            if usable and outline.get("size") != list(size):
                self.not_drawn["outlines of another size than their image"] += 1
                return None
            usable = usable and (isinstance(counts, str) or sum(counts) == size[0] * size[1])
        else:
            usable = isinstance(outline, list) and all(
                _are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0
                for polygon in outline
            )
        if not usable:
            self.not_drawn["outlines that are neither polygons nor run lengths"] += 1
            return None
        codes = outline
        if isinstance(outline, list) or not isinstance(outline["counts"], str):
            codes = coco_mask.frPyObjects(outline, *size)
        code = coco_mask.merge(codes) if isinstance(codes, list) else codes
        return coco_mask.decode(code).astype(bool)

    def _keypoints(self, points):
        if not points:
            return None
        if len(points) % 3:
            self.not_drawn["keypoints that are no triples"] += 1
            return None
        return np.array(points, float).reshape(-1, 3)


def _are_numbers(values):
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)
    )


def draw(image, objects: Shown, class_names: Sequence[str]) -> np.ndarray:
    """The image [H, W, 3] with outlines, keypoints and boxes, [h, w, 3]."""
    labels, ignore = objects.record["labels"], objects.record["ignore"]
    shades = [
        draw_lib.GREY if ignored else draw_lib.colour(label)
        for label, ignored in zip(labels.tolist(), ignore.tolist(), strict=True)
    ]
    outlined = [k for k, mask in enumerate(objects.masks) if mask is not None]
    image = mask_lib.draw_masks(
        image, [objects.masks[k] for k in outlined], [shades[k] for k in outlined]
    )
    for points, skeleton, shade in zip(objects.keypoints, objects.skeletons, shades, strict=True):
        if points is not None:
            image = mask_lib.draw_keypoints(image, points, skeleton, shade)
    return draw_lib.draw(
        image,
        objects.record["boxes"],
        labels,
        class_names,
        ignored=ignore,
        captions=objects.captions,
    )


def _predictions(args, source):
    """{image id: prediction} of the file that --predictions names."""
    saved = predictions_lib.load(args.predictions)
    found = predictions_lib.match(saved, source, evaluation.ground_truth(source))
    return {p["image_id"]: p for p in found}


def _above(found, args, class_names):
    """The predictions of an image that are drawn."""
    if found is None:
        found = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    keep = found["scores"] >= args.threshold
    if args.class_name:
        keep &= found["labels"] == images.label_of(args.class_name, class_names)
    return {key: np.asarray(found[key])[keep] for key in ("boxes", "scores", "labels")}


def report(shown: list[dict[str, Any]], not_drawn: dict[str, int]) -> str:
    """The drawn images as a table, and what could not be drawn."""
    header = ["image", "objects", "ignored", "outlines", "keypoints", "predictions"]
    rows = [
        [
            image["name"],
            str(len(image["objects"])),
            str(sum(entry["ignore"] for entry in image["objects"])),
            str(sum(entry["outline_px"] is not None for entry in image["objects"])),
            str(sum(entry["keypoints"] is not None for entry in image["objects"])),
            str(len(image["predictions"])) if "predictions" in image else "",
        ]
        for image in shown
    ]
    sentences = [f"not drawn: {count} {what}" for what, count in not_drawn.items()]
    return "\n".join([tables.text_table(header, rows), *sentences])


if __name__ == "__main__":
    errors.run_main(main)

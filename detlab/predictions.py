"""Predictions and metrics as JSON, text and pictures."""

import collections
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab import data_sets, errors, files, text
from detlab.data import coco_json, records
from detlab.metrics import inputs, tables
from detlab.viz import boxes as draw_lib
from detlab.viz import letters


def write(path: str | pathlib.Path, predictions: list[dict], class_names: Sequence[str]) -> None:
    """Saves predictions as JSON: xyxy boxes in original px, and the class names."""
    images = [
        {
            "image_id": p["image_id"],
            "boxes": np.round(p["boxes"].astype(float), 3).tolist(),
            "scores": np.round(p["scores"].astype(float), 6).tolist(),
            "labels": p["labels"].tolist(),
        }
        for p in predictions
    ]
    files.write_text(path, json.dumps({"class_names": list(class_names), "images": images}))


def write_coco(path: str | pathlib.Path, predictions: list[dict], source: Any) -> None:
    """Saves predictions as a results file of COCO's tools, such as `COCO.loadRes` reads.

    Boxes are x, y, width, height in original px, and categories have the ids of the annotation
    file; classes of other kinds of data are numbered from 1.  Numbers have 9 digits, so reading
    gives the same float32.  Prints a sentence if a class has no id there, or several.
    """
    labels_of = _category_labels(source)
    ids = coco_json.category_ids(labels_of, len(source.class_names))
    rows, lost = [], collections.Counter()
    for image in predictions:
        corners = image["boxes"].astype(float)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        columns = (xywh.tolist(), image["scores"].tolist(), image["labels"].tolist())
        for box, score, label in zip(*columns, strict=True):
            if ids[label] is None:
                lost[source.class_names[label]] += 1
                continue
            rows.append(
                {
                    "image_id": image["image_id"],
                    "category_id": ids[label],
                    "bbox": [_digits(value) for value in box],
                    "score": _digits(score),
                }
            )
    files.write_text(path, json.dumps(rows))
    if lost:
        print(
            f"predictions of classes that the annotation file lacks are not written:"
            f" {lost.total()}, of {text.listed(lost)}"
        )
    several = [
        f"{name} ({', '.join(str(key) for key, k in labels_of.items() if k == label)})"
        for label, name in enumerate(source.class_names)
        if sum(k == label for k in labels_of.values()) > 1
    ]
    if several:
        print(
            "classes of several categories are written with the first of their ids:"
            f" {text.listed(several)}"
        )


def _digits(value):
    return float(f"{value:.9g}")


def _category_labels(source):
    """{category id: label, or -1} of a source; classes without ids are numbered from 1."""
    numbered = {label + 1: label for label in range(len(source.class_names))}
    return getattr(source, "category_labels", numbered)


class Saved(NamedTuple):
    """A file of predictions: that of `write`, a dict, or COCO's results, a list."""

    path: pathlib.Path
    content: Any

    @property
    def class_names(self) -> list[str] | None:
        """The classes that the file names, in the order of its labels."""
        names = self.content.get("class_names") if isinstance(self.content, dict) else None
        strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return names if strings else None


def load(path: str | pathlib.Path) -> Saved:
    """Reads a file of predictions; `match` gives the predictions in it.

    Raises:
      UserError: no such file, or it holds no JSON.
    """
    path = pathlib.Path(path)
    try:
        content = text.read(path)
    except FileNotFoundError:
        raise errors.UserError(
            f"--predictions {path} does not exist; give --workdir or --checkpoint to write it."
        ) from None
    except OSError as error:
        raise errors.UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise errors.UserError(
            f"{path} is not a predictions file of detlab.eval, nor one of COCO's results: it"
            f" {error}."
        ) from error
    try:
        content = json.loads(content)
    except (ValueError, RecursionError) as error:
        fault = error if content.strip() else "it is empty"
        raise errors.UserError(_not_predictions(path, fault)) from error
    if not isinstance(content, (dict, list)):
        raise errors.UserError(_not_predictions(path, "it is neither a JSON object nor a list"))
    return Saved(path, content)


def _not_predictions(path, fault):
    return (
        f"{path} is not a predictions file of detlab.eval, nor one of COCO's results ({fault});"
        " write it again with --workdir or --checkpoint."
    )


def match(saved: Saved, source: Any, truth: list[dict]) -> list[dict]:
    """The predictions of a file, one dict per image, with the labels of a source.

    Prints a sentence on categories that are passed over, and on images without predictions.

    Args:
      truth: the annotations of the source, see `evaluation.ground_truth`.
    Raises:
      UserError: another kind of file, or predictions that do not match the ground truth: other
        classes, an unknown image, arrays of different lengths, non-finite values.
    """
    if isinstance(saved.content, list):
        predictions = _of_results(saved, source, truth)
    else:
        predictions = _of_detlab(saved, source.class_names)
    try:
        inputs.flatten(truth, predictions, len(source.class_names))
    except (ValueError, TypeError) as error:  # TypeError: an id that is a list
        raise errors.UserError(
            f"the predictions in {saved.path} do not match the data: {error}."
        ) from error
    without = len(truth) - len(predictions)
    if without:
        print(f"images without predictions: {without} of {len(truth)}")
    return predictions


def _of_detlab(saved, class_names):
    """The predictions that `write` saved."""
    images = saved.content.get("images")
    if "class_names" in saved.content and saved.class_names is None:
        raise errors.UserError(_not_predictions(saved.path, "its class_names are no list of names"))
    if "images" in saved.content and not (
        isinstance(images, list) and all(isinstance(image, dict) for image in images)
    ):
        raise errors.UserError(_not_predictions(saved.path, "its images are no list of objects"))
    try:
        data_sets.check_class_names(saved.content["class_names"], class_names)
        return [
            {
                "image_id": p["image_id"],
                "boxes": np.array(p["boxes"], np.float32),
                "scores": np.array(p["scores"], np.float32),
                "labels": np.array(p["labels"], np.int32),
            }
            for p in saved.content["images"]
        ]
    except KeyError as error:
        raise errors.UserError(_not_predictions(saved.path, f"it has no {error}")) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise errors.UserError(_not_predictions(saved.path, error)) from error


def _of_results(saved, source, truth):
    """The predictions in COCO's results: rows of image_id, category_id, bbox and score.

    An id may also be the text of a number or the number of a text.  Images may be named by their
    files instead, all of them.  Rows of categories that are not among the classes are passed over,
    as pycocotools does.
    """
    rows = saved.content
    for number, row in enumerate(rows):
        fault = coco_json.fault(row, coco_json.RESULT)
        if fault:
            raise errors.UserError(
                f"{saved.path} is not a file of COCO's results: entry {number} {fault}; each entry"
                " needs image_id, category_id, bbox and score."
            )
    images = _positions([row["image_id"] for row in rows], source, truth)
    unknown = [row["image_id"] for row, i in zip(rows, images, strict=True) if i is None]
    if unknown:
        names = dict.fromkeys(unknown)
        raise errors.UserError(
            f"the predictions in {saved.path} do not match the data: {len(unknown)} of {len(rows)}"
            f" are for images that the data lack ({len(names)} images, image_id"
            f" {text.listed(map(repr, names))}); evaluate them on the data that they are for."
        )

    labels_of = _category_labels(source)
    if not hasattr(source, "category_labels"):
        names = text.listed(source.class_names)
        print(f"the data have no category ids; 1 to {len(labels_of)} are read as {names}")
    category_of = _by_id(labels_of, labels_of.values())
    labels = [_find(row["category_id"], category_of) for row in rows]
    unknown = [row["category_id"] for row, label in zip(rows, labels, strict=True) if label is None]
    if unknown:
        names = text.listed(map(repr, dict.fromkeys(unknown)))
        if len(unknown) == len(rows):
            raise errors.UserError(
                f"the predictions in {saved.path} do not match the data: no category_id of theirs"
                f" ({names}) is among the data's ({text.listed(map(repr, labels_of))})."
            )
        print(
            f"predictions of categories that the data lack are passed over: {len(unknown)} of"
            f" {len(rows)}, category_id {names}"
        )
    if -1 in labels:
        print(
            "predictions of categories that are not in class_names are passed over:"
            f" {labels.count(-1)} of {len(rows)}"
        )

    of_image = {i: [] for i in dict.fromkeys(images)}
    for row, i, label in zip(rows, images, labels, strict=True):
        if label is not None and label >= 0:
            of_image[i].append((row["bbox"], row["score"], label))
    return [_of_image(truth[i]["image_id"], found) for i, found in of_image.items()]


def _positions(image_ids, source, truth):
    """The position of the image of each row; None for an image that the data lack.

    The ids are read in one way: as the data's ids, as names of files (which may be numbers, such as
    123 for 000123.jpg), or as ids with leading zeros; in the first way that finds all.
    """
    ids = [t["image_id"] for t in truth]
    named = collections.defaultdict(set)  # name of a file -> its images
    for i in range(len(truth)):
        path = pathlib.Path(source.name(i))
        for key in (path.name, path.stem, _plain(path.stem)):
            named[key].add(i)
    position = dict(zip(ids, range(len(ids)), strict=True))
    by_id = {str(key): i for key, i in position.items()} | position
    by_name = {key: min(of_key) for key, of_key in named.items() if len(of_key) == 1}
    plain = _by_id(ids)
    image_ids = list(map(coco_json.whole, image_ids))
    ways = (
        [by_id.get(key, by_id.get(str(key))) for key in image_ids],
        [by_name.get(str(key)) for key in image_ids],
        [_find(key, plain) for key in image_ids],
    )
    return min(ways, key=lambda positions: positions.count(None))


def _of_image(image_id, found):
    """The prediction of an image from its (xywh, score, label)."""
    xywh = np.array([box for box, _, _ in found], float).reshape(-1, 4)
    return {
        "image_id": image_id,
        "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1, dtype=np.float32),
        "scores": np.array([score for _, score, _ in found], np.float32),
        "labels": np.array([label for _, _, label in found], np.int32),
    }


def _by_id(ids, values=None):
    """{id, and its plain text: value}, by default its position; the first of equal ids."""
    ids = list(ids)
    values = range(len(ids)) if values is None else values
    found = dict(zip(ids, values, strict=True))
    for image_id, value in zip(ids, values, strict=True):
        found.setdefault(_plain(image_id), value)
    return found


def _find(image_id, values):
    """The value of an id, of a number or its text, in a dict of `_by_id`; None if it has none."""
    image_id = coco_json.whole(image_id)
    return values.get(image_id, values.get(_plain(image_id)))


def _plain(image_id):
    """An id as text, a number without leading zeros."""
    text_of_id = str(image_id)
    return str(int(text_of_id)) if text_of_id.isdecimal() else text_of_id


def report(result: dict) -> str:
    """The metrics as text: one row per class, both protocols, a sentence per exceeded bound."""
    number = tables.number
    lines = (
        ("COCO", ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")),
        ("", ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")),
        ("VOC", ("mAP07", "mAP12")),
    )
    overall = "\n".join(
        f"{name:4s}  " + "  ".join(f"{key} {number(result[key])}" for key in keys)
        for name, keys in lines
    )
    header = ["class", "objects", "detections", "AP", "AP50", "VOC 07", "VOC 12"]
    rows = [
        [
            row["name"],
            str(row["num_objects"]),
            str(row["num_detections"]),
            *(number(row[k]) for k in ("AP", "AP50", "AP07", "AP12")),
        ]
        for row in result["classes"]
    ]
    sentences = [
        f"On {bound['exceeded_on']} of {bound['images']} images, more candidates passed the score"
        f" threshold than {key} ({bound['keeps']}) keeps; the lowest-scoring ones were dropped"
        " before suppression."
        for key, bound in result.get("bounds", {}).items()
    ]
    return "\n".join([tables.text_table(header, rows), overall, *sentences])


def summary(figures: dict[str, float]) -> str:
    """The main metrics on one line."""
    keys = ("AP", "AP50", "AP75", "mAP07", "mAP12")
    return "  ".join(f"{k} {tables.number(figures[k])}" for k in keys)


def draw(
    folder: str | pathlib.Path,
    source: Any,
    truth: list[dict],
    predictions: list[dict],
    threshold: float,
    limit: int,
) -> int:
    """Draws ground truth beside predictions for the first `limit` images (0: all).

    Each image gets a file of its name; `contact_sheet.png` shows the first 16 together.  Unreadable
    images are skipped and reported.

    Returns:
      The number of pictures written.
    Raises:
      UserError: a picture cannot be written.
    """
    folder = pathlib.Path(folder)
    if sentence := letters.sentence(source.class_names):
        print(sentence)
    by_id = {p["image_id"]: p for p in predictions}
    shown_truth = truth[: limit or None]
    ids = [re.sub(r"[^\w.-]", "_", str(t["image_id"])) for t in shown_truth]
    _, *names = files.unique_names(["contact_sheet", *ids])
    count, first, cell = 0, [], (300, 560)
    for i, (objects, name) in enumerate(zip(shown_truth, names, strict=True)):
        try:
            image = source[i]["image"]
        except records.DataError as error:
            print(f"not drawn: {error}")
            continue
        found = by_id.get(objects["image_id"], _NOTHING)
        keep = found["scores"] >= threshold
        shown = {k: found[k][keep] for k in ("boxes", "labels", "scores")}
        picture = draw_lib.draw_pair(image, objects, shown, source.class_names)
        files.save_picture(folder / f"{name}.png", picture)
        count += 1
        if len(first) < 16:
            first.append(draw_lib.fit(picture, cell))
    if first:
        sheet = draw_lib.contact_sheet(first, columns=4, cell=cell)
        files.save_picture(folder / "contact_sheet.png", sheet)
    return count


_NOTHING = {
    "boxes": np.zeros((0, 4), np.float32),
    "labels": np.zeros(0, np.int32),
    "scores": np.zeros(0, np.float32),
}

"""Predictions and metrics as JSON, text and pictures."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from detlab import data_sets, errors, files
from detlab.data import records
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


def read(path: str | pathlib.Path, truth: list[dict], class_names: Sequence[str]) -> list[dict]:
    """Reads predictions that `write` saved.

    Raises:
      UserError: no such file, another kind of file, or predictions that do not match the ground
        truth: other classes, an unknown image, arrays of different lengths, non-finite values.
    """
    try:
        saved = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        data_sets.check_class_names(saved["class_names"], class_names)
        predictions = [
            {
                "image_id": p["image_id"],
                "boxes": np.array(p["boxes"], np.float32),
                "scores": np.array(p["scores"], np.float32),
                "labels": np.array(p["labels"], np.int32),
            }
            for p in saved["images"]
        ]
    except FileNotFoundError:
        raise errors.UserError(
            f"--predictions {path} does not exist; give --workdir or --checkpoint to write it."
        ) from None
    except OSError as error:
        raise errors.UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise errors.UserError(
            f"{path} is not a predictions file of detlab.eval ({error}); write it again with"
            " --workdir or --checkpoint."
        ) from error
    try:
        inputs.flatten(truth, predictions, len(class_names))
    except (ValueError, TypeError) as error:  # TypeError: an id that is a list
        raise errors.UserError(
            f"the predictions in {path} do not match the data: {error}."
        ) from error
    return predictions


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
    return "  ".join(f"{k} {figures[k]:.3f}" for k in keys)


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

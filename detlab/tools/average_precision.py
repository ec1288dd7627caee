r"""Shows how an average precision comes about, by both VOC rules and by COCO's.

    python -m detlab.tools.average_precision --config retinanet_bccd --config.data.root=BCCD \
        --predictions predictions.json --output shown
    python -m detlab.tools.average_precision --boxes boxes.csv --output shown

Draws the precision and recall of a class after each detection, and the envelope whose area or mean
is the AP, and lists every detection as TP, FP or ignored with its reason.  --boxes is a handful of
boxes written by hand, px: a CSV with the columns kind (truth, detection), image, class, score, x1,
y1, x2, y2, ignore, or a JSON list of objects with these keys.
"""

from detlab import cli
from detlab.tools import data_flags

if __name__ == "__main__":
    cli.answer_first(data_flags.average_precision(__doc__))  # --help needs no import below

import csv
import io
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from detlab import data_sets, errors, evaluation
from detlab import predictions as predictions_lib
from detlab import text as text_lib
from detlab.data import records
from detlab.metrics import coco, tables, voc
from detlab.tools import frame, images
from detlab.viz import boxes as draw_lib

TP, FP, IGNORED = "TP", "FP", "ignored"
SHADES = {TP: (40, 170, 60), FP: (220, 40, 40), IGNORED: draw_lib.GREY}
TRUTH = (60, 120, 230)
LISTED = 20  # rows of the printed table
CELL = (360, 480)  # height, width px of a picture on the sheet
ELEVEN = np.arange(0, 1.001, 0.1)
FIRST_100 = 100  # detections of an image that COCO counts


class Truth(NamedTuple):
    """Objects and detections, as `detlab.metrics.inputs` has them, and where pictures come from."""

    name: str
    class_names: tuple[str, ...]
    objects: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    picture: Any  # number of an image -> [h, w, 3] uint8; raises DataError


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, data_flags.average_precision(__doc__))
    if args.iou not in data_flags.IOUS:
        raise errors.UserError(
            f"--iou is {args.iou:g}; it must be one of {', '.join(map(str, data_flags.IOUS))}."
        )
    if args.count < 0:
        raise errors.UserError(f"--count is {args.count}; it must be at least 0.")
    config = None
    if args.boxes:
        if args.config or args.images or args.predictions or overrides:
            raise errors.UserError("--boxes has all boxes; give it without data and --predictions.")
        data = read_boxes(args.boxes)
    else:
        config = images.config_of(args, overrides)
        data = read_data(config, args)
    labels = chosen_labels(data, args.class_name)
    both = Both.of(data, args.iou)
    output = frame.Output(
        "average_precision", args, config, {"data": data.name, "images": len(data.objects)}
    )
    classes = {data.class_names[label]: both.explain(label) for label in labels}
    for name, found in classes.items():
        stem = "curves" if len(classes) == 1 else f"curves_{images.stem(name)}"
        output.figure(draw_curves(found, f"{data.name}, {name}", args.iou), stem)
    for rule in ("voc", "coco") if args.count else ():
        cells = draw_images(data, classes, rule, args.count)
        if cells:
            output.image(draw_lib.contact_sheet(cells, 4, cells[0].shape[:2]), f"boxes_{rule}.jpg")
    results = {"overall": both.overall, "classes": classes}
    output.close(results, report(results, args.iou))


# ------------------------------------------------------------------------------------------------
# Input


def read_data(config: Any, args: Any) -> Truth:
    """The evaluation data of a config and the saved predictions of them.

    Raises:
      UserError: the data or the predictions cannot be used.
    """
    if not args.predictions:
        raise errors.UserError("no predictions given; name their file with --predictions.")
    saved = predictions_lib.load(args.predictions)
    source = data_sets.open_any(config, "eval", saved.class_names)
    data_sets.report_problems(source, "eval")
    truth = evaluation.ground_truth(source)
    found = predictions_lib.match(saved, source, truth)
    truth = truth[: args.limit]
    kept = {image["image_id"] for image in truth}
    found = [prediction for prediction in found if prediction["image_id"] in kept]
    name = images.describe(config, "eval")
    return Truth(name, source.class_names, truth, found, lambda i: source[i]["image"])


def read_boxes(path: pathlib.Path) -> Truth:
    """Objects and detections that were written by hand, see the docstring of the file.

    Raises:
      UserError: the file cannot be read, or a row of it lacks something.
    """
    path = pathlib.Path(path)
    try:
        content = text_lib.read(path)
    except OSError as error:
        raise errors.UserError(f"cannot read --boxes {path}: {error.strerror}.") from error
    except ValueError as error:
        raise errors.UserError(f"--boxes {path} {error}.") from error
    if content.lstrip().startswith(("[", "{")):
        try:
            rows = json.loads(content)
        except ValueError as error:
            raise errors.UserError(f"--boxes {path} is not valid JSON ({error}).") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise errors.UserError(f"--boxes {path} is no JSON list of objects; write one a box.")
    else:
        rows = list(csv.DictReader(io.StringIO(content), skipinitialspace=True))
    boxes = [_hand_box(row, f"--boxes {path}, box {k}") for k, row in enumerate(rows, start=1)]
    if not any(box.score is None for box in boxes):
        raise errors.UserError(f"--boxes {path} has no object (kind truth), so there is no AP.")
    names = tuple(dict.fromkeys(box.class_name for box in boxes))
    image_ids = list(dict.fromkeys(box.image for box in boxes))
    objects, found = [], []
    for image_id in image_ids:
        mine = [box for box in boxes if box.image == image_id]
        truths = [box for box in mine if box.score is None]
        detections = [box for box in mine if box.score is not None]
        objects.append({"image_id": image_id, **_columns(truths, names)})
        found.append({"image_id": image_id, **_columns(detections, names)})
    corners = np.array([box.corners for box in boxes])
    width, height = np.ceil(corners[:, 2:].max(axis=0) * 1.05).astype(int)
    blank = np.full((max(height, 32), max(width, 32), 3), 245, np.uint8)
    return Truth(path.name, names, objects, found, lambda i: blank)


class HandBox(NamedTuple):
    """A box that was written by hand."""

    image: str
    class_name: str
    corners: list[float]  # x1, y1, x2, y2
    score: float | None  # None: an object
    ignore: bool


def _hand_box(row, where):
    """The `HandBox` of a row, {column: text or value}."""
    row = {str(key).strip(): value for key, value in row.items()}
    kind = str(row.get("kind", "")).strip()
    if kind not in ("truth", "detection"):
        raise errors.UserError(f"{where} has the kind {kind!r}; it must be truth or detection.")
    wanted = ["x1", "y1", "x2", "y2"] + ["score"] * (kind == "detection")
    numbers = []
    for key in wanted:
        try:
            numbers.append(float(row.get(key)))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise errors.UserError(f"{where} has the {key} {row.get(key)!r}, which is no number.")
    if numbers[2] <= numbers[0] or numbers[3] <= numbers[1]:
        raise errors.UserError(
            f"{where} has no area; x1, y1 is the upper left corner, x2, y2 the lower right."
        )
    ignore = str(row.get("ignore") or "0").strip().lower()
    if ignore not in ("0", "1", "true", "false"):
        raise errors.UserError(f"{where} has ignore {ignore!r}; it must be 0 or 1.")
    return HandBox(
        str(row.get("image", "1")).strip(),
        str(row.get("class", "object")).strip(),
        numbers[:4],
        numbers[4] if kind == "detection" else None,
        ignore in ("1", "true"),
    )


def _columns(boxes, names):
    corners = np.array([box.corners for box in boxes], np.float32).reshape(-1, 4)
    return {
        "boxes": corners,
        "labels": np.array([names.index(box.class_name) for box in boxes], np.int32),
        "scores": np.array([box.score or 0.0 for box in boxes]),
        "ignore": np.array([box.ignore for box in boxes], bool),
        "area": records.box_areas(corners),
    }


def chosen_labels(data: Truth, name: str | None) -> list[int]:
    """The classes that --class names; by default that with the most objects.

    Raises:
      UserError: there is no such class.
    """
    if name == "all":
        return list(range(len(data.class_names)))
    if name:
        return [images.label_of(name, data.class_names)]
    labels = np.concatenate([np.zeros(0, int), *(o["labels"][~o["ignore"]] for o in data.objects)])
    return [int(np.bincount(labels, minlength=len(data.class_names)).argmax())]


# ------------------------------------------------------------------------------------------------
# The two protocols


class Both(NamedTuple):
    """The matches of both protocols at one IoU."""

    image_ids: list[Any]
    iou: float
    matches: voc.Matches
    evaluator: Any  # pycocotools' COCOeval
    overall: dict[str, float]
    classes: list[dict[str, Any]]  # the APs of each class by both protocols
    rows: dict[tuple[int, int], dict]  # (label, image) -> COCO's matches of it
    numbers: tuple[np.ndarray, np.ndarray]  # of each object and detection within its image, from 1

    @classmethod
    def of(cls, data: Truth, iou: float) -> "Both":
        """Matches detections by both protocols.

        Raises:
          UserError: boxes that do not fit together.
        """
        names = data.class_names
        try:
            matches = voc.match(data.objects, data.predictions, len(names))
            result = voc.evaluate(data.objects, data.predictions, names, iou)
        except ValueError as error:
            raise errors.UserError(f"the boxes cannot be scored: {error}.") from error
        objects, detected = matches.objects, matches.detected
        evaluator = coco.run(objects, detected, len(data.objects), len(names))
        by_coco = coco.summarise(evaluator, objects, detected, names)
        classes = [
            {
                "num_objects": row["num_objects"],
                "num_detections": row["num_detections"],
                "voc_AP07": row["AP07"],
                "voc_AP12": row["AP12"],
                "coco_AP": other["AP"],
                "coco_AP50": other["AP50"],
                "coco_AP75": other["AP75"],
            }
            for row, other in zip(result["classes"], by_coco["classes"], strict=True)
        ]
        overall = {
            "voc_mAP07": result["mAP07"],
            "voc_mAP12": result["mAP12"],
            **{f"coco_{key}": by_coco[key] for key in ("AP", "AP50", "AP75")},
        }
        rows = {
            (row["category_id"] - 1, row["image_id"] - 1): row
            for row in evaluator.evalImgs
            if row is not None and row["aRng"] == evaluator.params.areaRng[0]
        }
        numbers = tuple(_within_image(boxes.image) for boxes in (objects, detected))
        ids = [image["image_id"] for image in data.objects]
        return cls(ids, iou, matches, evaluator, overall, classes, rows, numbers)

    def explain(self, label: int) -> dict[str, Any]:
        """The APs of a class, its curves and every detection with its reasons."""
        decisions = voc.decide(self.matches, label, self.iou)
        by_voc = self._voc_verdicts(decisions)
        by_coco = self._coco_verdicts(label)
        recall, precision = voc.pr_curve(decisions)
        detected = self.matches.detected
        detections = [
            {
                "rank": rank,
                "image": self.image_ids[int(detected.image[k])],
                "number": int(self.numbers[1][k]),
                "score": float(detected.scores[k]),
                "box": [round(x, 3) for x in detected.boxes[k].tolist()],
                "voc": {
                    "verdict": by_voc[k][0],
                    "reason": by_voc[k][1],
                    "recall": float(r),
                    "precision": float(p),
                },
                "coco": {"verdict": by_coco[k][0], "reason": by_coco[k][1]},
            }
            for rank, (k, r, p) in enumerate(
                zip(decisions.index.tolist(), recall, precision, strict=True), start=1
            )
        ]
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.append(envelope, 0)[np.searchsorted(recall, ELEVEN)]
        curves = self.evaluator.eval["precision"][:, :, label, 0, -1]  # [10, 101]
        return {
            **self.classes[label],
            "voc": {
                "recall": recall.tolist(),
                "precision": precision.tolist(),
                "envelope": envelope.tolist(),
                "eleven_points": reached.tolist(),
            },
            "coco": {
                "recall": self.evaluator.params.recThrs.tolist(),
                "ious": list(data_flags.IOUS),
                "precision": np.round(curves, 6).tolist(),  # -1: no objects
                "AP": [_mean(curve) for curve in curves],
            },
            "detections": detections,
        }

    def _voc_verdicts(self, decisions):
        """{detection: (verdict, reason)} by VOC's rule."""
        objects, best, ious = self.matches.objects, self.matches.best, self.matches.iou
        found, taken = {}, {}
        flags = zip(decisions.index.tolist(), decisions.true, decisions.false, strict=True)
        for k, true, false in flags:
            target, iou = int(best[k]), float(ious[k])
            if target < 0:
                reason = "the image has no object of the class"
            elif true:
                taken[target] = k
                reason = f"IoU {iou:.2f} with {self._object(target)}, which it is first to find"
            elif iou < self.iou:
                reason = (
                    f"IoU {iou:.2f} with {self._object(target)}, the best, is under {self.iou:g}"
                )
            elif objects.ignore[target]:
                reason = f"IoU {iou:.2f} with {self._object(target)}, which is ignored"
            else:
                reason = (
                    f"{self._object(target)} (IoU {iou:.2f}) has {self._detection(taken[target])}"
                )
            found[k] = (TP if true else FP if false else IGNORED, reason)
        return found

    def _coco_verdicts(self, label):
        """{detection: (verdict, reason)} by COCO's rule."""
        detected, objects = self.matches.detected, self.matches.objects
        at = data_flags.IOUS.index(self.iou)
        found = {}
        for image in np.unique(detected.image[detected.labels == label]).tolist():
            row = self.rows[label, image]
            # IoUs [detections by score, objects in the order of the file]; of crowds, the part of
            # the detection that lies inside.
            ious = np.reshape(self.evaluator.ious[image + 1, label + 1], (len(row["dtIds"]), -1))
            mine = _of_class(objects, image, label)
            holder = {}
            for d, detection in enumerate(row["dtIds"]):
                k, match = int(detection) - 1, int(row["dtMatches"][at][d]) - 1
                if match >= 0:
                    iou = ious[d][mine.tolist().index(match)]
                    if row["dtIgnore"][at][d]:
                        found[k] = (
                            IGNORED,
                            f"{iou:.2f} of it lies in {self._object(match)}, which is ignored",
                        )
                    else:
                        found[k] = (
                            TP,
                            f"IoU {iou:.2f} with {self._object(match)}, the best that is free",
                        )
                        holder[match] = k
                    continue
                found[k] = (FP, self._coco_miss(ious[d], mine, holder))
            for k in _of_class(detected, image, label).tolist():
                reason = f"only the best {FIRST_100} of a class in an image count"
                found.setdefault(k, (IGNORED, reason))
        return found

    def _coco_miss(self, ious, mine, holder):
        """Why a detection with these IoUs to the objects `mine` matched none."""
        if not len(mine):
            return "the image has no object of the class"
        best = int(np.argmax(ious))
        target, iou = int(mine[best]), float(ious[best])
        if iou >= self.iou and target in holder:
            return f"{self._object(target)} (IoU {iou:.2f}) has {self._detection(holder[target])}"
        return f"IoU {iou:.2f} with {self._object(target)}, the best, is under {self.iou:g}"

    def _object(self, k):
        return f"object {self.numbers[0][k]}"

    def _detection(self, k):
        score = self.matches.detected.scores[k]
        return f"detection {self.numbers[1][k]} (score {score:.2f})"


def _of_class(boxes, image, label):
    """Positions [n] of the boxes of a class in an image; `boxes` are ordered by image."""
    start, end = np.searchsorted(boxes.image, (image, image + 1))
    return start + np.flatnonzero(boxes.labels[start:end] == label)


def _within_image(image):
    """Numbers [n] from 1 of rows that are ordered by image [n]."""
    return np.arange(len(image)) - np.searchsorted(image, image) + 1


def _mean(values):
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


# ------------------------------------------------------------------------------------------------
# Pictures and text


def draw_curves(found: dict[str, Any], name: str, iou: float) -> Any:
    """A matplotlib Figure: the curve of a class by both VOC rules and by COCO's."""
    from matplotlib import figure as figure_lib  # imported late, so programs start without it

    figure = figure_lib.Figure(figsize=(15, 5.2), layout="constrained")
    area, points, by_coco = figure.subplots(1, 3, sharey=True)
    figure.suptitle(f"{name}: {found['num_objects']} objects, {found['num_detections']} detections")
    curve = found["voc"]
    recall, envelope = (np.array(curve[key]) for key in ("recall", "envelope"))
    area.fill_between(
        np.append(0, recall), np.append(envelope[:1], envelope), step="pre", alpha=0.2
    )
    area.step(np.append(0, recall), np.append(envelope[:1], envelope), label="envelope")
    area.set_title(f"VOC since 2010, IoU {iou:g}: area AP {tables.number(found['voc_AP12'])}")
    points.step(
        np.append(0, recall), np.append(envelope[:1], envelope), alpha=0.4, label="envelope"
    )
    points.plot(ELEVEN, curve["eleven_points"], "D", color="black", label="its 11 values")
    points.set_title(f"VOC 2007, IoU {iou:g}: mean of 11 AP {tables.number(found['voc_AP07'])}")
    marks = {TP: ("o", "#28aa3c"), FP: ("x", "#dc2828"), IGNORED: ("s", "#a0a0a0")}
    many = len(recall) > 60
    for axis in (area, points):
        axis.plot(recall, curve["precision"], color="grey", linewidth=0.8, zorder=1)
        for verdict, (marker, colour) in marks.items():
            chosen = [d["voc"] for d in found["detections"] if d["voc"]["verdict"] == verdict]
            axis.plot(
                [d["recall"] for d in chosen],
                [d["precision"] for d in chosen],
                marker,
                color=colour,
                markersize=(3 if many else 6) + 4 * (verdict == IGNORED),
                fillstyle="none" if verdict == IGNORED else "full",
                label=f"{verdict} ({len(chosen)})",
            )
        for place, scores in ({} if many else _scores_at(found["detections"])).items():
            axis.annotate(scores, place, (5, 5), textcoords="offset points", fontsize=7)
    curves = found["coco"]
    for k, (threshold, values, ap) in enumerate(
        zip(curves["ious"], curves["precision"], curves["AP"], strict=True)
    ):
        if ap >= 0:
            shade = (0.1, 0.3, 0.6, 1 - 0.085 * k)
            label = f"IoU {threshold:g}: {ap:.3f}"
            by_coco.plot(curves["recall"], values, color=shade, label=label)
    mean, at_half = (tables.number(found[key]) for key in ("coco_AP", "coco_AP50"))
    by_coco.set_title(f"COCO, 101 recalls, 10 IoUs: AP {mean}, AP50 {at_half}")
    for axis in (area, points, by_coco):
        axis.set(xlabel="recall", xlim=(-0.02, 1.02), ylim=(0, 1.05))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left", framealpha=0.6)
    area.set_ylabel("precision")
    return figure


def _scores_at(detections):
    """{(recall, precision): the scores of the detections there}, as text."""
    at = {}
    for d in detections:
        place = (d["voc"]["recall"], d["voc"]["precision"])
        at.setdefault(place, []).append(f"{d['score']:.2f}")
    return {place: ", ".join(scores) for place, scores in at.items()}


def draw_images(
    data: Truth, classes: dict[str, dict[str, Any]], rule: str, count: int
) -> list[np.ndarray]:
    """Cells of the first `count` images with detections: objects blue, detections by verdict."""
    of_image = {}
    for name, found in classes.items():
        for detection in found["detections"]:
            of_image.setdefault(detection["image"], []).append((name, detection))
    cells = []
    for i, objects in enumerate(data.objects):
        if len(cells) == count:
            break
        mine = of_image.get(objects["image_id"], [])
        shown = np.isin(objects["labels"], [data.class_names.index(name) for name in classes])
        if not mine and not (shown.any() and len(data.objects) <= count):
            continue
        try:
            image = data.picture(i)
        except records.DataError as error:
            print(f"not drawn: {error}")
            continue
        truths = np.flatnonzero(shown)
        boxes = [*objects["boxes"][truths].tolist(), *(d["box"] for _, d in mine)]
        ignored = [bool(objects["ignore"][k]) for k in truths] + [False] * len(mine)
        captions = [f"object {k + 1}" for k in truths]
        captions += [f"{d['number']}: {d['score']:.2f} {d[rule]['verdict']}" for _, d in mine]
        shades = [TRUTH] * len(truths) + [SHADES[d[rule]["verdict"]] for _, d in mine]
        picture = draw_lib.draw(
            image,
            np.array(boxes).reshape(-1, 4),
            np.zeros(len(boxes), int),
            ("",),
            ignored=ignored,
            captions=captions,
            shades=shades,
        )
        cell = draw_lib.contact_sheet([picture], 1, CELL)
        cells.append(draw_lib.with_heading(cell, f"{objects['image_id']}, by {rule.upper()}"))
    return cells


def report(results: dict[str, Any], iou: float) -> str:
    """The APs of the chosen classes, and their best detections with the reasons."""
    number = tables.number
    header = ["class", "objects", "detections", "VOC 07", "VOC 12", "COCO AP", "AP50"]
    rows = [
        [name, str(row["num_objects"]), str(row["num_detections"])]
        + [number(row[key]) for key in ("voc_AP07", "voc_AP12", "coco_AP", "coco_AP50")]
        for name, row in results["classes"].items()
    ]
    means = results["overall"]
    rows.append(
        ["all classes", "", ""]
        + [number(means[k]) for k in ("voc_mAP07", "voc_mAP12", "coco_AP", "coco_AP50")]
    )
    lines = [tables.text_table(header, rows)]
    for name, row in results["classes"].items():
        shown = row["detections"][:LISTED]
        lines.append(f"\n{name}, detections by score, IoU {iou:g}:")
        lines.append(
            tables.text_table(
                ["rank", "score", "recall", "precision"],
                [
                    [
                        f"{d['rank']} {d['image']} no. {d['number']}",
                        f"{d['score']:.3f}",
                        number(d["voc"]["recall"]),
                        number(d["voc"]["precision"]),
                    ]
                    for d in shown
                ],
            )
        )
        for d in shown:
            lines.append(f"{d['rank']}: VOC {d['voc']['verdict']}, {d['voc']['reason']}")
            lines.append(f"   COCO {d['coco']['verdict']}, {d['coco']['reason']}")
        if len(row["detections"]) > LISTED:
            lines.append(f"... {len(row['detections']) - LISTED} more are in the JSON")
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run_main(main)

"""Evaluates a detector: COCO's 12 numbers and PASCAL VOC mAP on any source.

    python -m detlab.eval --workdir runs/retinanet_shapes
    python -m detlab.eval --config experiments/retinanet_voc.py --checkpoint weights/retinanet_voc
    python -m detlab.eval --config experiments/retinanet_voc.py --predictions saved.json

The last form evaluates saved predictions without a model.

Objects marked as crowd (COCO) or difficult (VOC) are ignored: finding or missing them changes no
figure.  An image that cannot be read ends the evaluation, or with
`--config.data.eval_skip_broken=True` counts as one without detections.  A sentence after the
figures says on how many images more candidates passed than a bound of the model keeps, such as
config.model.num_candidates.
"""

import collections
import json
import os
import pathlib
import re
import tempfile
import time
from typing import Any, Iterable, NamedTuple, Sequence

from detlab import config as config_lib
from detlab import flags

if __name__ == "__main__":
    config_lib.answer_first(flags.evaluation(__doc__))  # --help needs no import below

import jax
import numpy as np

from detlab import contract
from detlab import distributed
from detlab import errors
from detlab import programs
from detlab import sharding
from detlab import types
from detlab.data import loader
from detlab.data import records
from detlab.metrics import coco
from detlab.metrics import inputs
from detlab.metrics import tables
from detlab.metrics import voc
from detlab.viz import boxes as draw_lib


def main(arguments: Sequence[str]) -> None:
    args, config, weights = _read_arguments(arguments)
    check_threshold(args.threshold)
    if args.draw_limit < 0:
        raise errors.UserError(f"--draw_limit is {args.draw_limit}; 0 draws all images.")
    written = [args.json] if weights is None else [args.json, args.predictions]
    check_outputs(files=filter(None, written), folders=filter(None, [args.draw]))
    source = programs.open_source(config, "eval")
    truth = ground_truth(source)

    bounds = {}  # saved predictions do not tell
    if weights is None:
        predictions = read_predictions(args.predictions, truth, source.class_names)
        print(f"evaluating the predictions in {args.predictions}")
    else:
        programs.check_class_names(weights.info.get("class_names"), source.class_names)
        distributed.check_same(config=config_lib.to_json(config), checkpoint=str(weights.path))
        programs.check_same_images(data=source)
        print(f"evaluating {weights.path} on {len(source)} images")
        mesh = sharding.make_mesh()
        programs.check_batch_size("eval.batch_size", config.eval.batch_size)
        detector = contract.build(config)
        params, state = programs.fit_weights(detector, config, weights, mesh)
        predictor = Predictor(detector, mesh)
        start = time.time()
        predictions, bounds = predict(predictor, params, state, source, config, mesh)
        seconds = time.time() - start - predictor.compile_seconds
        for (height, width), taken in predictor.compiled_in.items():
            print(f"compiled prediction for {height}x{width} in {taken:.1f} s")
        print(f"{len(source) / seconds:.1f} img/s after compilation")
        if not distributed.is_first():
            return
        if args.predictions:
            write_predictions(args.predictions, predictions, source.class_names)
            print(f"predictions:   {args.predictions}")

    result = score(truth, predictions, source.class_names, bounds)
    print(report(result))
    if args.json:
        programs.write_text(args.json, json.dumps(result, indent=1))
        print(f"figures:       {args.json}")
    if args.draw:
        count = draw(args.draw, source, truth, predictions, args.threshold, args.draw_limit)
        print(f"{count} pictures:   {args.draw} (and a contact sheet of the first)")


def ground_truth(source) -> list[dict]:
    """What the metrics compare with: the annotations of all images, in original px."""
    truth = []
    for i in range(len(source)):
        height, width = source.size(i)
        record = source.annotation(i)
        truth.append(
            {
                "image_id": source.image_id(i),
                "height": height,
                "width": width,
                **{k: record[k] for k in ("boxes", "labels", "ignore", "area")},
            }
        )
    return truth


class Predictor:
    """`Detector.predict_with_bounds`, each device with its own images.

    There is one compiled program for each canvas.

    Attributes:
      compiled_in: canvas (height, width) px -> seconds that compilation took.
    """

    def __init__(self, detector: contract.Detector, mesh):
        self.compiled_in = {}
        function = sharding.per_image(detector.predict_with_bounds, mesh, constants=2)
        self._predict = jax.jit(function)
        self._compiled = {}

    @property
    def compile_seconds(self) -> float:
        return sum(self.compiled_in.values())

    def __call__(
        self, params: Any, state: Any, images: Any, image_size: Any
    ) -> tuple[types.Detections, dict[str, jax.Array]]:
        canvas = images.shape[1:3]
        if canvas not in self._compiled:
            start = time.time()
            lowered = self._predict.lower(params, state, images, image_size)
            self._compiled[canvas] = lowered.compile()
            self.compiled_in[canvas] = time.time() - start
        return self._compiled[canvas](params, state, images, image_size)


def predict(
    predictor: Predictor,
    params: Any,
    state: Any,
    source,
    config,
    mesh,
    stop: distributed.StopSignals | None = None,
) -> tuple[list[dict], dict[str, dict]]:
    """Detections of every image of a source, in its original px; stops early if `stop()`.

    An image that is skipped because it cannot be read has no entry; a sentence is printed for it.
    With several processes each predicts its share and gets what all of them found.

    Returns:
      One dict an image, and the bounds on candidates that were exceeded: key of the config ->
      {"keeps": its value, "exceeded_on": number of images, "images": number of all predicted}.
    """
    batches = loader.eval_batches(
        source,
        batch_size=config.eval.batch_size,
        canvases=config.data.canvases,
        max_boxes=config.data.max_boxes,
        pad_value=config.data.pad_value,
        **programs.resize_rule(config.data, "eval"),
        skip_broken=config.data.eval_skip_broken,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        read_threads=config.data.read_threads,
        workers=config.data.workers,
    )
    predictions, num_skipped, exceeded = [], 0, collections.Counter()
    with programs.progress_bar(len(source), "evaluate", "img", leave=False) as bar:
        for loaded in programs.user_errors(batches):
            if stop is not None and stop():
                break
            programs.report_skipped(loaded.skipped)
            batch = loaded.batch
            images, size = sharding.put_batch((batch.images, batch.image_size), mesh)
            detections, on_image = predictor(params, state, images, size)
            rows = _Rows(
                batch.index,
                batch.placement,
                batch.real,
                skipped=np.repeat([len(loaded.skipped), 0], [1, len(batch.index) - 1]),
                stop=np.full(len(batch.index), stop is not None and stop.wanted),
            )
            detections, on_image, rows = distributed.gather((detections, on_image, rows), mesh)
            if stop is not None:
                stop.agree(rows.stop.any())
            for row in np.flatnonzero(rows.real):
                i = int(rows.index[row])
                keep = detections.valid[row]
                boxes = to_original(
                    detections.boxes[row][keep], rows.placement[row], source.size(i)
                )
                predictions.append(
                    {
                        "image_id": source.image_id(i),
                        "boxes": boxes,
                        "scores": detections.scores[row][keep],
                        "labels": detections.labels[row][keep],
                    }
                )
            exceeded.update({k: int(v[rows.real].sum()) for k, v in on_image.items()})
            num_skipped += int(rows.skipped.sum())
            bar.update(int(rows.real.sum() + rows.skipped.sum()))
        if num_skipped:
            bar.write(
                f"{num_skipped} of {len(source)} images cannot be read and count as images"
                " without detections"
            )
    bounds = {
        f"config.model.{name}": {
            "keeps": contract.field(config, name),
            "exceeded_on": count,
            "images": len(predictions),
        }
        for name, count in exceeded.items()
        if count
    }
    return predictions, bounds


class _Rows(NamedTuple):
    """What the host knows of the images of a batch, and of its process in the last two."""

    index: np.ndarray
    placement: np.ndarray
    real: np.ndarray
    skipped: np.ndarray  # images that could not be read: their number in the first row
    stop: np.ndarray  # whether the process was told to stop


def to_original(boxes: np.ndarray, placement: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes [n, 4] from px of the canvas to px of the original image, clipped to it."""
    scale, shift = np.tile(placement[:2], 2), np.tile(placement[2:], 2)
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip((boxes - shift) / scale, 0, limits).astype(np.float32)


def score(
    truth: list[dict],
    predictions: list[dict],
    class_names: Sequence[str],
    bounds: dict[str, dict] | None = None,
) -> dict:
    """Figures of both protocols: the COCO keys, mAP07, mAP12 and one row a class.

    The exceeded bounds that `predict` returned are among them as "bounds", if there are any.

    Raises:
      UserError: the predictions do not fit the ground truth, or are not finite.
    """
    try:
        result = coco.evaluate(truth, predictions, class_names)
        result_voc = voc.evaluate(truth, predictions, class_names)
    except ValueError as error:
        raise errors.UserError(f"the predictions cannot be scored: {error}.") from error
    classes = [
        {**row, "AP07": row_voc["AP07"], "AP12": row_voc["AP12"]}
        for row, row_voc in zip(result["classes"], result_voc["classes"])
    ]
    overall = {k: result_voc[k] for k in ("mAP07", "mAP12")}
    result = {**result, **overall, "classes": classes}
    return {**result, "bounds": bounds} if bounds else result


def scalars(result: dict) -> dict[str, float]:
    """The figures of `score` without the table and the bounds."""
    return {k: float(v) for k, v in result.items() if k not in ("classes", "bounds")}


def report(result: dict) -> str:
    """The figures as text: one row a class, both protocols, a sentence for an exceeded bound."""
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
        f"On {bound['exceeded_on']} of {bound['images']} images more candidates passed the"
        f" threshold than {key} ({bound['keeps']}) keeps; the worst were dropped before"
        " suppression."
        for key, bound in result.get("bounds", {}).items()
    ]
    return "\n".join([tables.text_table(header, rows), overall, *sentences])


def draw(
    folder: str | pathlib.Path,
    source,
    truth: list[dict],
    predictions: list[dict],
    threshold: float,
    limit: int,
) -> int:
    """Ground truth beside predictions for the first `limit` images (0: all), one file an image.

    The files are named after the images; `contact_sheet.png` has the first 16 of them together.
    An image that cannot be read is left out with a printed sentence.

    Returns:
      How many pictures were written.
    Raises:
      UserError: a picture cannot be written.
    """
    folder = pathlib.Path(folder)
    by_id = {p["image_id"]: p for p in predictions}
    shown_truth = truth[: limit or None]
    ids = [re.sub(r"[^\w.-]", "_", str(t["image_id"])) for t in shown_truth]
    _, *names = unique_names(["contact_sheet", *ids])
    count, first, cell = 0, [], (300, 560)
    for i, (objects, name) in enumerate(zip(shown_truth, names)):
        try:
            image = source[i]["image"]
        except records.DataError as error:
            print(f"not drawn: {error}")
            continue
        found = by_id.get(objects["image_id"], _NOTHING)
        keep = found["scores"] >= threshold
        shown = {k: found[k][keep] for k in ("boxes", "labels", "scores")}
        picture = draw_lib.draw_pair(image, objects, shown, source.class_names)
        save_picture(folder / f"{name}.png", picture)
        count += 1
        if len(first) < 16:
            first.append(draw_lib.fit(picture, cell))
    if first:
        sheet = draw_lib.contact_sheet(first, columns=4, cell=cell)
        save_picture(folder / "contact_sheet.png", sheet)
    return count


def save_picture(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes an RGB image; a path that cannot be written is the user's error."""
    try:
        draw_lib.save(path, image)
    except OSError as error:
        raise errors.UserError(f"cannot write {path}: {error.strerror or error}.") from error


def unique_names(names: Iterable[str]) -> list[str]:
    """The names; one that was there before, in capitals or not, gets its position appended."""
    taken, unique = set(), []
    for i, name in enumerate(names):
        while name.lower() in taken:
            name = f"{name}_{i}"
        taken.add(name.lower())
        unique.append(name)
    return unique


_NOTHING = {
    "boxes": np.zeros((0, 4), np.float32),
    "labels": np.zeros(0, np.int32),
    "scores": np.zeros(0, np.float32),
}


def write_predictions(
    path: str | pathlib.Path, predictions: list[dict], class_names: Sequence[str]
) -> None:
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
    programs.write_text(path, json.dumps({"class_names": list(class_names), "images": images}))


def read_predictions(
    path: str | pathlib.Path, truth: list[dict], class_names: Sequence[str]
) -> list[dict]:
    """What `write_predictions` saved.

    Raises:
      UserError: no such file, another kind of file, or predictions that do not fit the ground
        truth: other classes, an unknown image, arrays of different lengths, values not finite.
    """
    try:
        saved = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        programs.check_class_names(saved["class_names"], class_names)
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
            f"no predictions at {path}; give --workdir or --checkpoint to make them."
        ) from None
    except OSError as error:
        raise errors.UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise errors.UserError(
            f"{path} is not a file of predictions that detlab.eval wrote ({error})."
        ) from error
    try:
        inputs.flatten(truth, predictions, len(class_names))
    except (ValueError, TypeError) as error:  # TypeError: an id that is a list
        raise errors.UserError(
            f"the predictions in {path} do not fit the data: {error}."
        ) from error
    return predictions


def check_outputs(
    files: Iterable[str | pathlib.Path] = (), folders: Iterable[str | pathlib.Path] = ()
) -> None:
    """Makes the folders of what will be written, to fail before the long work and not after it.

    Raises:
      UserError: a path that cannot be written.
    """
    files = [pathlib.Path(file) for file in files]
    for folder in [*map(pathlib.Path, folders), *(file.parent for file in files)]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise errors.UserError(
                f"cannot write into the folder {folder}: {error.strerror or error}."
            ) from error
    for file in files:
        if file.is_dir():
            raise errors.UserError(f"cannot write {file}: it is a folder; name a file in it.")
        if file.exists() and not os.access(file, os.W_OK):
            raise errors.UserError(f"cannot write {file}: it is protected against writing.")


def check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise errors.UserError(f"--threshold is {threshold:g}; it is a score, from 0 to 1.")


def _read_arguments(arguments):
    args, overrides = config_lib.parse(arguments, flags.evaluation(__doc__))
    distributed.join(args)
    if args.config and not args.checkpoint and args.predictions:
        return args, config_lib.load(args.config, overrides), None
    config, weights = programs.load_model(args, overrides)
    return args, config, weights


if __name__ == "__main__":
    distributed.run_main(main)

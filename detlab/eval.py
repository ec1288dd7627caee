"""Evaluates a detector: COCO's 12 numbers and PASCAL VOC mAP on any source.

    python -m detlab.eval --workdir runs/retinanet_shapes
    python -m detlab.eval --config experiments/retinanet_voc.py --checkpoint weights/retinanet_voc
    python -m detlab.eval --config experiments/retinanet_voc.py --predictions saved.json

The last form evaluates saved predictions without a model.
"""

import argparse
import json
import pathlib
import time
from typing import Any, Callable, Sequence

import jax
import numpy as np

from detlab import config as config_lib
from detlab import detector as detector_lib
from detlab import errors
from detlab import programs
from detlab import sharding
from detlab.data import loader
from detlab.metrics import coco
from detlab.metrics import tables
from detlab.metrics import voc
from detlab.viz import boxes as draw_lib


def main(arguments: Sequence[str]) -> None:
    args, config, weights = _read_arguments(arguments)
    source = programs.open_source(config, "eval")
    truth = ground_truth(source)

    if weights is None:
        predictions = read_predictions(args.predictions, source.class_names)
        print(f"evaluating the predictions in {args.predictions}")
    else:
        programs.check_class_names(weights.info.get("class_names"), source.class_names)
        print(f"evaluating {weights.path} on {len(source)} images")
        mesh = sharding.make_mesh()
        programs.check_batch_size("eval.batch_size", config.eval.batch_size)
        detector = detector_lib.build(config)
        params, state = programs.fit_weights(detector, config, weights, mesh)
        predictor = make_predictor(detector, mesh)
        start = time.time()
        predictions = predict(predictor, params, state, source, config, mesh)
        print(f"{len(source) / (time.time() - start):.1f} img/s, compilation included")
        if args.predictions:
            write_predictions(args.predictions, predictions, source.class_names)
            print(f"predictions:   {args.predictions}")

    result = score(truth, predictions, source.class_names)
    print(report(result))
    if args.json:
        programs.write_text(args.json, json.dumps(result, indent=1))
        print(f"figures:       {args.json}")
    if args.draw:
        count = draw(args.draw, source, truth, predictions, args.threshold, args.draw_limit)
        print(f"{count} pictures:   {args.draw}")


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


def make_predictor(detector: detector_lib.Detector, mesh) -> Callable:
    """(params, state, images, image_size) -> Detections, each device with its own images."""
    return jax.jit(sharding.per_image(detector.predict, mesh, constants=2))


def predict(
    predictor: Callable,
    params: Any,
    state: Any,
    source,
    config,
    mesh,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict]:
    """Detections of every image of a source, in its original px; stops early if `stop()`."""
    batches = loader.eval_batches(
        source,
        batch_size=config.eval.batch_size,
        canvases=config.data.canvases,
        max_boxes=config.data.max_boxes,
        pad_value=config.data.pad_value,
        resize=programs.resize_rule(config.data),
        read_threads=config.data.read_threads,
        workers=config.data.workers,
    )
    predictions = []
    with programs.progress_bar(len(source), "evaluate", "img", leave=False) as bar:
        for batch in programs.user_errors(loaded.batch for loaded in batches):
            if stop():
                break
            images, size = sharding.put_batch((batch.images, batch.image_size), mesh)
            detections = jax.device_get(predictor(params, state, images, size))
            for row in np.flatnonzero(batch.real):
                i = int(batch.index[row])
                keep = detections.valid[row]
                boxes = to_original(
                    detections.boxes[row][keep], batch.placement[row], source.size(i)
                )
                predictions.append(
                    {
                        "image_id": source.image_id(i),
                        "boxes": boxes,
                        "scores": detections.scores[row][keep],
                        "labels": detections.labels[row][keep],
                    }
                )
            bar.update(int(batch.real.sum()))
    return predictions


def to_original(
    boxes: np.ndarray, placement: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Boxes [n, 4] from px of the canvas to px of the original image, clipped to it."""
    scale, shift = np.tile(placement[:2], 2), np.tile(placement[2:], 2)
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip((boxes - shift) / scale, 0, limits).astype(np.float32)


def score(truth: list[dict], predictions: list[dict], class_names: Sequence[str]) -> dict:
    """Figures of both protocols: the COCO keys, mAP07, mAP12 and one row a class."""
    result = coco.evaluate(truth, predictions, class_names)
    voc07 = voc.evaluate(truth, predictions, class_names, rule="11points")
    voc12 = voc.evaluate(truth, predictions, class_names, rule="area")
    classes = [
        {**row, "AP07": row07["AP"], "AP12": row12["AP"]}
        for row, row07, row12 in zip(result["classes"], voc07["classes"], voc12["classes"])
    ]
    return {**result, "mAP07": voc07["mAP"], "mAP12": voc12["mAP"], "classes": classes}


def scalars(result: dict) -> dict[str, float]:
    """The figures of `score` without the table."""
    return {k: float(v) for k, v in result.items() if k != "classes"}


def report(result: dict) -> str:
    """The figures as text: both protocols, then one row a class."""
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
    return f"{tables.text_table(header, rows)}\n{overall}"


def draw(
    folder: str | pathlib.Path,
    source,
    truth: list[dict],
    predictions: list[dict],
    threshold: float,
    limit: int,
) -> int:
    """Ground truth beside predictions for the first `limit` images (0: all); returns how many."""
    by_id = {p["image_id"]: p for p in predictions}
    count = min(limit or len(source), len(source))
    for i in range(count):
        image = source[i]["image"]
        found = by_id.get(truth[i]["image_id"], _NOTHING)
        keep = found["scores"] >= threshold
        shown = {k: found[k][keep] for k in ("boxes", "labels", "scores")}
        picture = draw_lib.draw_pair(image, truth[i], shown, source.class_names)
        name = pathlib.Path(str(truth[i]["image_id"])).stem
        draw_lib.save(pathlib.Path(folder) / f"{name}.png", picture)
    return count


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


def read_predictions(path: str | pathlib.Path, class_names: Sequence[str]) -> list[dict]:
    """What `write_predictions` saved."""
    try:
        saved = json.loads(pathlib.Path(path).read_text())
        images = saved["images"]
        programs.check_class_names(saved["class_names"], class_names)
        return [
            {
                "image_id": p["image_id"],
                "boxes": np.array(p["boxes"], np.float32).reshape(-1, 4),
                "scores": np.array(p["scores"], np.float32),
                "labels": np.array(p["labels"], np.int32),
            }
            for p in images
        ]
    except FileNotFoundError:
        raise errors.UserError(
            f"no predictions at {path}; give --workdir or --checkpoint to make them."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise errors.UserError(
            f"{path} is not a file of predictions that detlab.eval wrote ({error})."
        ) from error


def _read_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m detlab.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    programs.add_model_flags(parser)
    parser.add_argument("--predictions", help="write predictions here; without a model, read them")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--draw", help="draw pictures into this folder")
    parser.add_argument("--draw_limit", type=int, default=0, help="number of pictures; 0: all")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that is drawn")
    args, overrides = config_lib.parse(arguments, parser)
    if args.config and not args.checkpoint and args.predictions:
        return args, config_lib.load(args.config, overrides), None
    config, weights = programs.load_model(args, overrides)
    return args, config, weights


if __name__ == "__main__":
    errors.run_main(main)

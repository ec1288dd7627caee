"""Evaluation: predict every image of a source and score the detections.

Objects marked as crowd (COCO) or difficult (VOC) are ignored: detecting or missing them changes no
metric.
"""

import collections
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from detlab import contract, data_sets, distributed, errors, progress, sharding, types
from detlab.data import batch as batch_lib
from detlab.metrics import coco, voc


def ground_truth(source: Any) -> list[dict]:
    """The annotations of all images, in original px, as the metrics take them."""
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


def report_no_objects(truth: list[dict]) -> bool:
    """Whether no object counts, so that there are no figures; then prints a sentence."""
    if any((~objects["ignore"]).any() for objects in truth):
        return False
    ignored = sum(len(objects["ignore"]) for objects in truth)
    but = f"; {ignored} are marked as crowd, difficult or invalid" if ignored else ""
    print(
        f"no object to find in the {len(truth)} images of the evaluation data{but}: the figures are"
        " n/a (-1 in files)"
    )
    return True


class Predictor:
    """`Detector.predict_with_bounds` with the images of a batch spread over the devices.

    One program is compiled per canvas.

    Attributes:
      compiled_in: canvas (height, width) px -> seconds that compilation took.
    """

    def __init__(self, detector: contract.Detector, mesh: jax.sharding.Mesh):
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
            self._compiled[canvas] = self.lower(params, state, images, image_size).compile()
            self.compiled_in[canvas] = time.time() - start
        return self._compiled[canvas](params, state, images, image_size)

    def lower(self, params: Any, state: Any, images: Any, image_size: Any) -> jax.stages.Lowered:
        """The program, traced and lowered for arrays or their shapes."""
        return self._predict.lower(params, state, images, image_size)


def predict(
    predictor: Predictor,
    params: Any,
    state: Any,
    source: Any,
    config: config_dict.ConfigDict,
    mesh: jax.sharding.Mesh,
    stop: distributed.StopSignals | None = None,
) -> tuple[list[dict], dict[str, dict]]:
    """Detects objects in every image of a source, in original px; stops early if `stop()`.

    Unreadable images that are skipped have no entry and are reported.  With several processes, each
    predicts its share and gets the detections of all.

    Returns:
      One dict per image, and the bounds on candidates that were exceeded: key of the config ->
      {"keeps": its value, "exceeded_on": number of images, "images": number of all predicted}.
    """
    predictions, num_skipped, exceeded = [], 0, collections.Counter()
    with progress.bar(len(source), "evaluate", "img", leave=False) as bar:
        for loaded in data_sets.evaluation_batches(source, config):
            if stop is not None and stop():
                break
            progress.report_skipped(loaded.skipped)
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
                boxes = batch_lib.to_original(
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
                f"unreadable images: {num_skipped} of {len(source)}, counted as images without"
                " detections"
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
    """Facts on the host about each row of a batch; the last two are about its process."""

    index: np.ndarray
    placement: np.ndarray
    real: np.ndarray
    skipped: np.ndarray  # number of unreadable images, in the first row; 0 in the others
    stop: np.ndarray  # whether the process was told to stop


def score(
    truth: list[dict],
    predictions: list[dict],
    class_names: Sequence[str],
    bounds: dict[str, dict] | None = None,
) -> dict:
    """Metrics of both protocols: the COCO keys, mAP07, mAP12 and one row per class.

    -1 stands for a figure without objects.
    Exceeded bounds, as `predict` returns them, are added as "bounds".

    Raises:
      UserError: the predictions do not fit the ground truth, or are not finite.
    """
    try:
        result = coco.evaluate(truth, predictions, class_names)
        result_voc = voc.evaluate(truth, predictions, class_names)
    except ValueError as error:
        raise errors.UserError(f"the predictions cannot be scored: {error}.") from error
    classes = [
        {**row, **{k: row_voc[k] if row["num_objects"] else -1.0 for k in ("AP07", "AP12")}}
        for row, row_voc in zip(result["classes"], result_voc["classes"], strict=True)
    ]
    some = any(row["num_objects"] for row in classes)
    overall = {k: result_voc[k] if some else -1.0 for k in ("mAP07", "mAP12")}
    result = {**result, **overall, "classes": classes}
    return {**result, "bounds": bounds} if bounds else result


def scalars(result: dict) -> dict[str, float]:
    """The metrics of `score` without the table and the bounds."""
    return {k: float(v) for k, v in result.items() if k not in ("classes", "bounds")}

"""The inputs of all metrics, and their checks.

Ground truth is a list with one dict per image:
  image_id  int or str, different for each image
  boxes     [n, 4] float32 xyxy, px of the original image
  labels    [n] int32 in 0..C-1
  ignore    [n] bool: crowd (COCO) or difficult (VOC)
  area      [n] float32 px^2; of the mask if the data set has masks
  height, width   px; the metrics do not read them
Predictions are a list with one dict per image, in any order, matched by `image_id`:
  boxes     [k, 4] xyxy, px of the original image
  scores    [k]
  labels    [k] in 0..C-1
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Objects(NamedTuple):
    """The M objects of all images, ordered by image."""

    image: np.ndarray  # [M] position of the image in the ground truth
    boxes: np.ndarray  # [M, 4] float32 xyxy, px
    labels: np.ndarray  # [M] int32
    ignore: np.ndarray  # [M] bool
    area: np.ndarray  # [M] float32 px^2, as given


class Detected(NamedTuple):
    """The D detections of all images, ordered by image and otherwise as given."""

    image: np.ndarray  # [D] position of the image in the ground truth
    boxes: np.ndarray  # [D, 4] float32 xyxy, px
    labels: np.ndarray  # [D] int32
    scores: np.ndarray  # [D] float64


def flatten(
    ground_truth: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], num_classes: int
) -> tuple[Objects, Detected]:
    """Checks ground truth and predictions and concatenates the boxes of all images.

    Args:
      ground_truth, predictions: see above; an image without a prediction counts as one without
        detections.
      num_classes: C.
    Returns:
      (Objects, Detected).
    Raises:
      ValueError: an image is given twice, a prediction is for an unknown image, arrays differ in
        length, a label is out of range, or a box, area or score is not finite.
    """
    truths = {}
    for image in ground_truth:
        where = f"ground truth of image {image['image_id']!r}"
        if image["image_id"] in truths:
            raise ValueError(f"{where} is given twice")
        boxes, labels = _boxes_and_labels(image, num_classes, where)
        ignore = _column(image, "ignore", bool, len(boxes), where)
        area = _column(image, "area", np.float32, len(boxes), where)
        truths[image["image_id"]] = (np.full(len(boxes), len(truths)), boxes, labels, ignore, area)

    found = {}
    for image in predictions:
        where = f"prediction of image {image['image_id']!r}"
        if image["image_id"] not in truths:
            raise ValueError(f"{where}: the ground truth has no such image")
        if image["image_id"] in found:
            raise ValueError(f"{where} is given twice")
        boxes, labels = _boxes_and_labels(image, num_classes, where)
        found[image["image_id"]] = (
            boxes,
            labels,
            _column(image, "scores", float, len(boxes), where),
        )
    detections = [
        (np.full(len(found[image_id][0]), position), *found[image_id])
        for position, image_id in enumerate(truths)
        if image_id in found
    ]

    # The empty arrays give the types if there are no images.
    no_box = (np.zeros(0, int), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    objects = zip(
        (*no_box, np.zeros(0, bool), np.zeros(0, np.float32)), *truths.values(), strict=True
    )
    detected = zip((*no_box, np.zeros(0)), *detections, strict=True)
    return Objects(*map(np.concatenate, objects)), Detected(*map(np.concatenate, detected))


def _boxes_and_labels(image, num_classes, where):
    boxes = np.asarray(image["boxes"], np.float32)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes  # [] has the shape [0]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes have the shape {boxes.shape}, not [n, 4]")
    if not np.isfinite(boxes).all():
        raise ValueError(f"{where}: a box is not finite")
    labels = _column(image, "labels", np.int32, len(boxes), where)
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"{where}: label {outside[0]} is outside 0..{num_classes - 1}")
    return boxes, labels


def _column(image, name, dtype, length, where):
    values = np.asarray(image[name], dtype)
    if values.shape != (length,):
        raise ValueError(
            f"{where}: {name} has the shape {values.shape}, not {(length,)} with one entry per box"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: {name} has a value that is not finite")
    return values

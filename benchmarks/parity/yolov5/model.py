"""The YOLOv5 of a case with its weights, and its detections.

The weights determine the network as `converters.convert` determines it for a user's file.
"""

import math
import pathlib
import types as python_types
from collections.abc import Mapping, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import cases, checks, runner
from detlab import errors, types
from detlab.converters import mapping, target
from detlab.converters.readers import contents, files
from detlab.converters.tables import yolov5 as yolov5_table
from detlab.data import records, transforms
from detlab.detectors import yolov5
from detlab.ops import nms as nms_lib

GREY = (114, 114, 114)
SIDE, MULTIPLE = 640, 32  # px: longer side of a letterboxed picture; divides both sides
# The files round recorded boxes to 0.01 px and scores to 1e-5.
LISTED_SCORES = checks.SCORES + 1e-5


class Model:
    """A detector with its weights, which predicts on one canvas after the other."""

    def __init__(
        self,
        file: contents.Contents,
        name: str,
        compiler_options: Mapping | None = None,
        **settings,
    ):
        found = yolov5_table.fields(file)
        fields = dict(num_classes=found.num_classes, norm="stored")
        fields |= found.certain | found.assumed | settings
        self.module = yolov5.YOLOv5(**fields)
        self.module.check()
        config = python_types.SimpleNamespace(detector="yolov5", model=fields)
        try:
            table = yolov5_table.table(fields)
            tree, _ = mapping.convert(file.tensors, table, target.shapes(config))
        except mapping.ConversionError as error:
            raise errors.UserError(f"case {name}: {error}") from error
        self.variables = tree
        self.predict = jax.jit(self.detect, compiler_options=compiler_options)

    def detect(self, variables, images):
        """The function that `predict` compiles."""
        size = jnp.tile(jnp.array(images.shape[1:3]), (len(images), 1))
        canvas = images.shape[1:3]
        maps = self.module.apply(variables, images, False, method="maps")
        xywh, objectness, _ = self.module.split(maps.predictions)
        boxes = self.module.boxes(xywh, self.module.grid(canvas))
        candidates = self.module.candidates(maps, size, canvas)
        found = self.module.suppress(candidates), _suppress_moved(candidates, self.module)
        return maps.predictions, (boxes, objectness), found

    def __call__(self, images: np.ndarray):
        """uint8 [1, H, W, 3] -> (raw maps, (boxes, objectness logits), detections).

        The detections are a pair: by the detector's suppression and by the reference's.
        """
        raw, decoded, both = jax.device_get(self.predict(self.variables, images))
        both = [types.Detections(*(x[0][found.valid[0]] for x in found)) for found in both]
        return raw, decoded, both

    def on_picture(self, image: np.ndarray, canvas: tuple[int, int]) -> list[types.Detections]:
        """Detections on a picture [h, w, 3] of any size, by the letterbox of detect.py, in its px.

        Boxes are mapped back as in the reference, by one ratio for both sides and an unrounded
        border; detlab's programs use the ratio of each rounded side, up to 0.2 px away.
        """
        height, width = image.shape[:2]
        record = records.without_objects(image)
        record = transforms.letterbox(record, *canvas, GREY, "half_even")
        both = self(record["image"][None])[2]
        ratio = min(canvas[0] / height, canvas[1] / width)
        border = np.array(canvas[::-1]) - np.array([width, height]) * ratio
        limits, shift = [width, height] * 2, np.tile(border / 2, 2)
        return [
            found._replace(boxes=np.clip((found.boxes - shift) / ratio, 0, limits))
            for found in both
        ]


def _suppress_moved(candidates: types.Detections, module: yolov5.YOLOv5) -> types.Detections:
    """Suppression that separates classes as the reference does, by moving each farther.

    That leaves float32 a resolution of 0.06 px at class 79 of release 7.0, which changes decisions
    on overlaps very near the threshold: 2 of 4177 on `coco_mini`.
    """

    def one_image(boxes, scores, labels, valid):
        moved = boxes + (shift(module) * labels)[:, None]
        indices, keep = nms_lib.nms(moved, scores, valid, module.nms_iou, module.max_detections)
        kept = [nms_lib.take(values, indices, keep) for values in (boxes, scores, labels)]
        return *kept, keep

    return types.Detections(*jax.vmap(one_image)(*candidates))


def shift(module: yolov5.YOLOv5) -> float:
    """Px by which the reference moves each class: in release 3.0, or in 7.0."""
    return 4096.0 if module.block == "csp" else 7680.0


def published(info: dict, settings: runner.Settings, **fields) -> Model:
    """The model of a case with published weights.

    Raises:
      UserError: the weights are missing, or are not those that the case was recorded with.
    """
    path = settings.folders.weights / info["weights"]
    cases.check_sha256(path, info.get("sha256"))
    return Model(
        files.read(path),
        info["weights"],
        settings.compiler_options,
        score_threshold=info["conf"],
        nms_iou=info.get("iou", info.get("nms_iou")),
        **fields,
    )


def canvas(height: int, width: int) -> tuple[int, int]:
    """The letterbox of a picture: longer side 640 px, the other rounded up to a multiple of 32."""
    sides = transforms.letterbox_sides((height, width), (SIDE, SIDE), "half_even")
    return tuple(MULTIPLE * math.ceil(side / MULTIPLE) for side in sides)


def read_picture(path: pathlib.Path) -> np.ndarray:
    """[h, w, 3] RGB."""
    image = cv2.imread(str(path))
    if image is None:
        raise errors.UserError(f"{path} cannot be read.")
    return np.ascontiguousarray(image[..., ::-1])


def listed(rows: Sequence) -> types.Detections:
    """Recorded detections of an image: K rows of x1, y1, x2, y2, score, class; K may be 0."""
    rows = np.asarray(rows).reshape(-1, 6)
    labels = rows[:, 5].astype(int)
    return types.Detections(rows[:, :4], rows[:, 4], labels, np.ones(len(rows), bool))


def by_anchor(module, x):
    """[B, Hl, Wl, A * D] -> [B, A, Hl, Wl, D]."""
    x = x.reshape(*x.shape[:3], module.anchors_per_cell, -1)
    return x.transpose(0, 3, 1, 2, 4)


def head_by_head(module, rows, maps):
    """Rows [B, N, D] by cell, then anchor -> by anchor, then cell, within each level."""
    ends = np.cumsum([x.shape[1] * x.shape[2] * module.anchors_per_cell for x in maps])
    parts = jnp.split(rows, ends[:-1], axis=1)
    parts = [
        by_anchor(module, part.reshape(*x.shape[:3], -1)).reshape(*part.shape)
        for part, x in zip(parts, maps, strict=True)
    ]
    return jnp.concatenate(parts, axis=1)

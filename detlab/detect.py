"""Detects the objects of one picture that belongs to no data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from detlab import contract
from detlab.data import augment, coco_classes, plan, records
from detlab.data import batch as batch_lib
from detlab.data import settings as settings_lib
from detlab.viz import boxes as draw_lib


class Detect(NamedTuple):
    """Detects objects in an image, draws them, and lists them as JSON."""

    predict: Callable  # (params, state, images, image_size) -> Detections
    params: Any
    state: Any
    settings: settings_lib.Settings  # the demo's, not the evaluation's
    class_names: Sequence[str]
    threshold: float
    top_k: int

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """[h, w, 3] uint8 RGB -> boxes [k, 4] xyxy px of it, scores [k], labels [k]; best first."""
        return self.together([image], 1)[0]

    def canvas(self, image: np.ndarray) -> tuple[int, int]:
        """The canvas (height, width) px that suits an image best."""
        return plan.canvas_of(image.shape[:2], self.settings)

    def together(self, images: Sequence[np.ndarray], batch_size: int) -> list[dict]:
        """What a call gives for each of at most `batch_size` images of one canvas."""
        canvas = self.canvas(images[0])
        resize = augment.resizer(self.settings)
        rows = [resize(records.without_objects(image), *canvas) for image in images]
        rows += [None] * (batch_size - len(images))
        pad_value, dtype = self.settings.pad_value, self.settings.dtype
        batch = batch_lib.to_batch(rows, canvas, 1, pad_value, dtype)
        found = jax.device_get(
            self.predict(self.params, self.state, batch.images, batch.image_size)
        )
        return [self._of_row(found, batch, i, image.shape[:2]) for i, image in enumerate(images)]

    def _of_row(self, found, batch, row, size):
        keep = found.valid[row] & (found.scores[row] >= self.threshold)
        keep = np.flatnonzero(keep)[: self.top_k]
        boxes = batch_lib.to_original(found.boxes[row][keep], batch.placement[row], size)
        scores, labels = found.scores[row][keep], found.labels[row][keep]
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def draw(self, image: np.ndarray, found: dict[str, np.ndarray], min_side: int) -> np.ndarray:
        return draw_lib.draw(image, class_names=self.class_names, min_side=min_side, **found)

    def as_json(self, found: dict[str, np.ndarray]) -> list[dict]:
        """One entry per object: class, score and xyxy box in px of the original."""
        return [
            {
                "class": self.class_names[label],
                "score": round(float(score), 4),
                "box": [round(float(x), 2) for x in box],
            }
            for box, score, label in zip(
                found["boxes"], found["scores"], found["labels"], strict=True
            )
        ]


def of(
    predict: Callable[..., Any],
    params: Any,
    state: Any,
    config: config_dict.ConfigDict,
    class_names: Sequence[str],
) -> Detect:
    """The `Detect` of a config that `for_pictures` returned."""
    settings = settings_lib.of(config.data, "demo", config.predict)
    bounds = config.predict.threshold, config.predict.top_k
    return Detect(predict, params, state, settings, class_names, *bounds)


def for_pictures(
    config: config_dict.ConfigDict, overrides: Mapping[str, str]
) -> config_dict.ConfigDict:
    """A copy of the config whose `model` has the values of `config.predict.model`.

    A field of `config.model` that the command line sets keeps that value, unless it sets
    `config.predict.model` too.

    Args:
      overrides: those of the command line, by key.
    """
    copy = config.copy_and_resolve_references()
    for name, value in config.predict.model.items():
        if f"model.{name}" not in overrides or f"predict.model.{name}" in overrides:
            with copy.unlocked(), copy.model.ignore_type():
                copy.model[name] = value
    return copy


def names_of(saved: Sequence[str] | None, config: config_dict.ConfigDict) -> tuple[str, ...]:
    """Class names from the checkpoint, else from the config, else "class 0", "class 1", ...

    A detector of 80 classes on COCO's data, whose files (darknet's) may have no names, has COCO's.
    """
    names = tuple(saved or config.data.class_names)
    count = contract.num_classes(config)
    if not names and config.data.source == "coco" and count == len(coco_classes.NAMES):
        return coco_classes.NAMES
    return names or tuple(f"class {i}" for i in range(count))

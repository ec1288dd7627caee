"""Detects the objects of one picture that belongs to no data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from detlab import contract
from detlab.data import augment, plan, records
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
        canvas = plan.canvas_of(image.shape[:2], self.settings)
        record = augment.resizer(self.settings)(records.without_objects(image), *canvas)
        pad_value, dtype = self.settings.pad_value, self.settings.dtype
        batch = batch_lib.to_batch([record], canvas, 1, pad_value, dtype)
        found = jax.device_get(
            self.predict(self.params, self.state, batch.images, batch.image_size)
        )
        keep = found.valid[0] & (found.scores[0] >= self.threshold)
        keep = np.flatnonzero(keep)[: self.top_k]
        boxes = batch_lib.to_original(found.boxes[0][keep], batch.placement[0], image.shape[:2])
        return {"boxes": boxes, "scores": found.scores[0][keep], "labels": found.labels[0][keep]}

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
    """Class names from the checkpoint, else from the config, else "class 0", "class 1", ..."""
    names = tuple(saved or config.data.class_names)
    return names or tuple(f"class {i}" for i in range(contract.num_classes(config)))

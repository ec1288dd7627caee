"""Objects of training images that find no slot in a batch, told before training."""

from typing import Any

import numpy as np

from detlab.data import augment, plan
from detlab.data import settings as settings_lib

_PICTURES = 100  # drawn to see how many objects meet in a mosaic


def shortage(source: Any, settings: settings_lib.Settings, seed: int) -> str:
    """A sentence on the training images with more objects than `settings.max_boxes`.

    It is "" if every object has a slot.  If training joins images (mosaic, mixup), pictures are
    drawn as training draws them, but without pixels.

    Args:
      source: see `detlab.data.records`.
      settings: those of training.
      seed: of the pictures that are drawn.
    """
    slots = settings.max_boxes
    joined = _images_in_a_picture(settings.augment)
    if source.max_objects * joined <= slots:
        return ""
    of_image = {source.image_id(i): _counts(source.annotation(i)) for i in range(len(source))}
    counts = np.array(list(of_image.values()), np.int64)  # a repeated image counts once
    if joined > 1 and counts.sum(axis=1).max() * joined > slots:
        drawn = _counts_of_pictures(source, settings, seed)
        if (drawn.sum(axis=1) > slots).any():
            what = f"{len(drawn)} training pictures drawn as a sample, which join images,"
            return _sentence(drawn, slots, what, "these")
    if (counts.sum(axis=1) > slots).any():
        return _sentence(counts, slots, f"{len(counts)} images", "all")
    return ""


def _sentence(counts, slots, what, room):
    over = counts[counts.sum(axis=1) > slots]
    lost = np.maximum(over[:, 0] - slots, 0)
    background = over.sum(axis=1) - slots - lost  # those to ignore are the first without a slot
    parts = []
    if lost.any():
        parts.append(
            f"{lost.sum()} of their {over[:, 0].sum()} objects, the smallest, are not learnt"
        )
    if background.any():
        parts.append(
            f"{background.sum()} of their {over[:, 1].sum()} objects to ignore are learnt as"
            " background"
        )
    verb, most = "has" if len(over) == 1 else "have", over.sum(axis=1).max()
    return (
        f"{len(over)} of {what} {verb} more objects than the {slots} slots of"
        f" config.data.max_boxes, up to {most}; {' and '.join(parts)};"
        f" --config.data.max_boxes={most} has room for {room}"
    )


def _images_in_a_picture(settings):
    """The most images that one training picture joins."""
    tiles = 1
    if settings.mosaic:
        tiles = 9 if settings.mosaic_nine else 4
    return tiles * (2 if settings.mixup else 1)


def _counts(record):
    """(objects to learn, objects to ignore) of a record."""
    ignored = int(record["ignore"].sum())
    return len(record["ignore"]) - ignored, ignored


def _counts_of_pictures(source, settings, seed):
    """`_counts` [n, 2] of the first training pictures, without colours, which move no box."""
    plain = settings.augment._replace(photometric=0.0, hsv=0.0, cutout=0.0)
    settings = settings._replace(augment=plain)

    def read(i, skipped):
        return {"image": np.zeros((*source.size(i), 3), np.uint8), **source.annotation(i)}

    make = augment.of(settings, read, len(source))
    sizes = plan.source_sizes(source)
    steps = plan.Epochs(sizes, seed, 1, settings.canvases, settings.multiscale)
    return np.array([_counts(make(steps(k), 0, [])) for k in range(_PICTURES)])

"""A source of small pictures and its streams, shared by the tests of data."""

import numpy as np

from detlab.data import loader, records, settings

CANVASES = ((32, 48), (48, 32))
SIZES = np.array([(20, 40), (40, 20), (30, 30), (64, 90), (90, 64), (10, 11), (33, 21)] * 3)


class Pictures:
    """A source of grey images with value i and `counts[i]` objects; some are broken."""

    class_names = ("thing",)

    def __init__(self, sizes=SIZES, counts=None, broken=()):
        self._sizes, self._broken = sizes, broken
        self._counts = [2] * len(sizes) if counts is None else counts

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, i):
        if i in self._broken:
            raise records.DataError(f"image {i} is broken")
        return {"image": np.full((*self.size(i), 3), i, np.uint8), **self.annotation(i)}

    def annotation(self, i):
        n = self._counts[i]
        start = np.arange(n, dtype=np.float32)
        return {
            "boxes": np.stack([start, start, start + 3, 2 * start + 4], axis=1),  # growing
            "labels": np.arange(n, dtype=np.int32) % 3,
            "ignore": np.arange(n) % 4 == 3,
            "area": np.ones(n, np.float32),
            "index": i,
        }

    def size(self, i):
        return tuple(int(side) for side in self._sizes[i])


def split(changes):
    """Splits a dict of both into (settings, arguments of the stream)."""
    known = settings.Settings._fields
    both = dict(canvases=CANVASES, max_boxes=3, pad_value=114, read_threads=0) | changes
    arguments = {name: value for name, value in both.items() if name not in known}
    return settings.Settings(**{k: both[k] for k in both if k in known}), arguments


def train(source, **changes):
    """All batches of a training stream, by default nine of four images."""
    chosen, arguments = split({"flip_vertical": 0.5, "skip_broken": True, **changes})
    arguments = {"batch_size": 4, "seed": 7, "num_steps": 9, **arguments}
    return list(loader.train_batches(source, chosen, **arguments))


def evaluate(source, **changes):
    """All batches of an evaluation stream, by default of four images."""
    chosen, arguments = split(changes)
    return list(loader.eval_batches(source, chosen, **{"batch_size": 4, **arguments}))


def assert_same(stream, other):
    for loaded, expected in zip(stream, other, strict=True):
        for name, value in expected.batch._asdict().items():
            np.testing.assert_array_equal(getattr(loaded.batch, name), value, err_msg=name)
        assert loaded[1:] == expected[1:]


# Augmentations of training.
ALL = settings.Augment(photometric=0.8, expand=0.5, crop="min_iou", cutout=0.5)
SSD = settings.Augment(expand=1.0, crop="random", crop_size=(0.8, 1.0))
YOLO = settings.Augment(
    crop="jitter",
    crop_jitter=0.1,
    mosaic=0.7,
    mosaic_nine=0.4,
    affine=0.8,
    affine_degrees=10.0,
    affine_shear=3.0,
    affine_perspective=1e-3,
    mixup=0.4,
    mixup_beta=2.0,
    hsv=0.9,
)
MOSAIC = settings.Augment(mosaic=1.0)

GREY = np.array([(60, 60)] * 12)  # images that fill the canvas: image i has colour i
SQUARE = dict(canvases=((60, 60),), resize="letterbox", flip_horizontal=0.0, flip_vertical=0.0)


def train_yolo(source, **changes):
    return train(source, augment=YOLO, **changes)


def colours_of(image):
    return set(np.unique(image).tolist()) - {114}

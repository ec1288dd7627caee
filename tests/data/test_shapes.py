"""The procedural data set: the same everywhere, with tight boxes and a fixed difficulty."""

import hashlib

import numpy as np
import pytest

from detlab.data import shapes

HASHES = {
    ("train", 0): "989306aca26afa66",
    ("train", 3999): "d0b2b00aa1d7f018",
    ("val", 0): "c0506db402fd62e5",
}


@pytest.mark.parametrize("split, index", HASHES)
def test_pixels_and_boxes_are_fixed(split, index):
    record = shapes.Shapes(split)[index]
    digest = hashlib.sha256(record["image"].tobytes())
    digest.update(
        record["boxes"].astype("<f4").tobytes() + record["labels"].astype("<i4").tobytes()
    )
    assert digest.hexdigest()[:16] == HASHES[split, index]


def test_splits_seeds_and_images_differ():
    sources = [shapes.Shapes("train"), shapes.Shapes("val"), shapes.Shapes("train", seed=1)]
    assert [len(source) for source in sources] == [4000, 200, 4000]
    pictures = {source[i]["image"].tobytes() for source in sources for i in range(100)}
    assert len(pictures) == 300


def test_annotation_agrees_with_the_record():
    source = shapes.Shapes("val", num_images=20)
    for i in range(20):
        record, annotation = source[i], source.annotation(i)
        assert record.pop("image").shape == (*source.size(i), 3)
        assert record.keys() == annotation.keys()
        for name, value in record.items():
            np.testing.assert_array_equal(value, annotation[name])
    assert [record["index"] for record in source] == list(range(20))


@pytest.mark.parametrize("size", [64, 128, 200])
def test_box_is_tight_to_the_drawn_shape(size, monkeypatch):
    monkeypatch.setattr(shapes, "_background", lambda rng, n: np.zeros((n, n, 3), np.int32))
    monkeypatch.setattr(shapes, "_noise", lambda rng, shape: 0)
    seen = set()
    for record in shapes.Shapes(size=size, num_images=150):
        if len(record["boxes"]) == 1:
            rows, columns = np.nonzero(record["image"].any(axis=2))
            drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_array_equal(record["boxes"][0], drawn)
            seen.add(int(record["labels"][0]))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("mask", shapes._MASKS)
def test_mask_touches_all_four_sides_of_its_box(mask):
    rng = np.random.default_rng(0)
    for width, height in rng.integers(16, 71, (300, 2)):
        drawn = mask(rng, width, height)
        assert drawn.shape == (height, width)
        assert drawn[0].any() and drawn[-1].any() and drawn[:, 0].any() and drawn[:, -1].any()


def test_difficulty_is_as_stated():
    counts, labels = [], []
    for i in range(500):
        annotation = shapes.Shapes().annotation(i)
        boxes = annotation["boxes"]
        counts.append(len(boxes))
        labels += annotation["labels"].tolist()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 16 and sides.max() <= 70
        assert boxes.min() >= 0 and boxes.max() <= 128
        np.testing.assert_array_equal(annotation["area"], sides.prod(axis=1))
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlap = np.maximum(high - low, 0).prod(axis=2)
        smaller = np.minimum.outer(annotation["area"], annotation["area"])
        pairs = ~np.eye(len(boxes), dtype=bool)
        assert (overlap <= smaller / 2)[pairs].all()
        # Later objects lie on top: together they hide at most half of an earlier box.
        assert (np.triu(overlap, 1).sum(axis=1) <= annotation["area"] / 2).all()
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert min(np.bincount(labels, minlength=4)) > 0.2 * len(labels)


def test_noise_has_deviation_eight():
    noise = shapes._noise(np.random.default_rng(0), (400, 400, 3))
    # 480,000 samples: deviation of the mean 0.012 and of the deviation 0.008; five of each.
    assert abs(noise.mean()) < 0.06
    assert abs(noise.std() - 8) < 0.04 + 1 / 192  # rounding to whole numbers adds 1/12 to 64


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="split is 'test'; it must be one of train, val"):
        shapes.Shapes("test")
    with pytest.raises(ValueError, match="size is 16 px"):
        shapes.Shapes(size=16)
    with pytest.raises(IndexError):
        shapes.Shapes("val")[200]

"""SABL on RetinaNet: what it learns and predicts from given maps, without a network."""

import functools

import jax
import numpy as np
import pytest
import tiny

from detlab.detectors import sabl_retinanet

TINY = tiny.TINY["sabl_retinanet"].fields  # 3 buckets a side, in squares of 24 px on level 0
CANVAS = (64, 96)
CELL = 3 * 12 + 4  # of the finest level, at (32, 24) px
# Its square, 20..44 and 12..36, is enlarged to -4..68 and -12..60; buckets have 12 px.
BOX = np.float32([19, 11, 43, 35])


def made_maps(**values):
    """Outputs with one value, or one for each channel, in all cells."""
    shapes = [(2, -(-CANVAS[0] // s), -(-CANVAS[1] // s)) for s in (8, 16, 32, 64, 128)]
    channels = {"cls_logits": 3, "bucket_logits": 12, "bucket_offsets": 12}
    found = {
        name: tuple(np.float32(np.broadcast_to(values.get(name, 0), (*s, count))) for s in shapes)
        for name, count in channels.items()
    }
    return sabl_retinanet.Outputs(features=(), **found)


@functools.cache
def program(method, **fields):
    module = sabl_retinanet.SABLRetinaNet(**TINY, **fields)
    more = (CANVAS,) if method == "candidates" else ()
    return tiny.jit(lambda *arguments: module.apply({}, *arguments, *more, method=method))


@pytest.fixture
def batch():
    found = tiny.make_batch(objects=(1, 0), slots=2)
    found.boxes[0, 0] = BOX
    return found


def test_sides_are_in_the_nearest_bucket_with_an_offset_in_buckets(batch):
    targets = jax.device_get(program("targets")(batch, made_maps()))["main"]
    assert targets.status[0, CELL] == 1 and not (targets.status[1] == 1).any()
    values = {name: x[0, CELL] for name, x in targets.values.items()}  # [4, 3] each
    # Middles of the buckets from the left are at 2, 14, 26 px, from the right at 62, 50, 38.
    np.testing.assert_allclose(
        values["offsets"][0], np.array([2, 14, 26]) / 12 - 19 / 12, rtol=1e-5
    )
    np.testing.assert_allclose(
        values["offsets"][1], np.array([62, 50, 38]) / 12 - 43 / 12, rtol=1e-5
    )
    np.testing.assert_array_equal(values["labels"][:2], [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(values["label_weights"][:2], [[1, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(values["offset_weights"][:2], [[0, 1, 1], [0, 1, 1]])


def perfect_maps(batch):
    """What the targets of the only object ask for, in all cells that learn from it."""
    targets = jax.device_get(program("targets")(batch, made_maps()))["main"]
    maps, start = made_maps(cls_logits=-9), 0
    for level in range(5):
        rows, columns = maps.cls_logits[level].shape[1:3]
        part = slice(start, start + rows * columns)
        start = part.stop
        positive = targets.status[:, part] == 1
        shape = (2, rows, columns, -1)
        logits = 20 * targets.values["labels"][:, part].reshape(shape) - 10
        maps.bucket_logits[level][:] = logits
        maps.bucket_offsets[level][:] = targets.values["offsets"][:, part].reshape(shape)
        maps.cls_logits[level][..., 1] = np.where(positive, 2, -9).reshape(2, rows, columns)
    return maps


def test_right_buckets_and_offsets_have_no_loss_and_give_the_box(batch):
    maps = perfect_maps(batch)
    value, metrics = program("loss")(batch, maps)
    assert metrics["loss/bucket"] < 1e-3 and metrics["loss/offset"] < 1e-6
    assert float(value) == pytest.approx(
        sum(metrics[f"loss/{x}"] for x in ("cls", "bucket", "offset"))
    )
    found = jax.device_get(program("candidates")(maps, np.int32([CANVAS, CANVAS])))
    boxes = found.boxes[0][found.valid[0]]
    assert len(boxes) > 1 and not found.valid[1].any()
    np.testing.assert_allclose(boxes, np.broadcast_to(BOX, boxes.shape), atol=1e-3)


def test_scores_are_rectified_by_how_sure_the_buckets_are_after_the_threshold():
    """Even buckets: two of three are neighbours, so two thirds of the class score 0.5 remain."""
    size = np.int32([CANVAS, CANVAS])
    maps = made_maps(cls_logits=(0, -9, -9))
    found = jax.device_get(program("candidates", score_threshold=0.49)(maps, size))
    assert found.valid.any()
    np.testing.assert_allclose(found.scores[found.valid], 1 / 3, rtol=1e-5)
    sure = made_maps(cls_logits=(0, -9, -9), bucket_logits=np.tile([9.0, -9, -9], 4))
    found = jax.device_get(program("candidates", score_threshold=0.49)(sure, size))
    np.testing.assert_allclose(found.scores[found.valid], 0.5, rtol=1e-5)


def test_without_objects_there_is_only_the_loss_of_background():
    batch = tiny.make_batch(objects=(0, 0))
    value, metrics = program("loss")(batch, made_maps())
    assert metrics["loss/bucket"] == metrics["loss/offset"] == metrics["positives"] == 0
    assert metrics["loss/cls"] > 0 and np.isfinite(value)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(norm="batch"), "norm is 'batch'; it must be group or none"),
        (dict(norm="group", norm_groups=3), "norm_groups is 3; it must be a divisor of head_width"),
        (dict(num_buckets=2), "num_buckets is 2; it must be at least 3"),
        (dict(bucket_scale=0.0), "bucket_scale is 0.0; it must be above 0"),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    sabl_retinanet.SABLRetinaNet().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        sabl_retinanet.SABLRetinaNet(**fields).check()

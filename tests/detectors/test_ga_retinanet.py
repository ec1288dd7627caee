"""Guided anchors on RetinaNet: what it learns and predicts from given maps, without a network."""

import functools

import jax
import numpy as np
import pytest
import tiny

from detlab.detectors import ga_retinanet

TINY = tiny.TINY["ga_retinanet"].fields
CANVAS = (64, 96)
KEY = jax.random.key(0)
CELL = 3 * 12 + 4  # of the finest level, at (32, 24) px; its square has 20 px
SQUARE = np.array([22.0, 14.0, 42.0, 34.0])


def made_maps(canvas=CANVAS, **values):
    """Outputs with one value, or one for each channel, in all cells."""
    channels = {"cls_logits": 3, "box_deltas": 4, "location_logits": 1, "shapes": 2}
    shapes = [(2, -(-canvas[0] // s), -(-canvas[1] // s)) for s in (8, 16, 32, 64, 128)]
    found = {
        name: tuple(np.float32(np.broadcast_to(values.get(name, 0), (*s, count))) for s in shapes)
        for name, count in channels.items()
    }
    return ga_retinanet.Outputs(features=(), **found)


@functools.cache
def program(method, canvas=CANVAS, **fields):
    module = ga_retinanet.GARetinaNet(**TINY, **fields)
    more = (canvas,) if method == "candidates" else ()

    @tiny.jit
    def run(*arguments):
        return module.apply({}, *arguments, *more, method=method, rngs={"sample": KEY})

    return run


def test_boxes_start_from_the_predicted_shapes_in_likely_cells_alone():
    """Twice as wide and half as high as the square, in one cell; it has the deltas 0."""
    maps = made_maps(cls_logits=(2, -9, -9), location_logits=-9, shapes=np.log([2, 0.5]))
    maps.location_logits[0][0, 3, 4] = 0
    size = np.int32([CANVAS, CANVAS])
    found = jax.device_get(program("candidates")(maps, size))
    assert found.valid.sum(1).tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[0][found.valid[0]], [[12, 19, 52, 29]], rtol=1e-5)
    np.testing.assert_allclose(found.scores[0][found.valid[0]], 1 / (1 + np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_boxes_without_area_are_dropped_unless_they_are_to_be_kept(kept):
    """Two cells of the second level predict boxes, one of them far to the left of the image."""
    maps = made_maps(cls_logits=(2, -9, -9), location_logits=-9)
    maps.location_logits[1][0, 2, :2] = 0
    maps.box_deltas[1][0, 2, 0, 0] = -9
    run = program("candidates", keep_empty_boxes=kept)
    found = jax.device_get(run(maps, np.int32([CANVAS, CANVAS])))
    assert found.valid.sum(1).tolist() == [2 if kept else 1, 0]
    widths = (found.boxes[..., 2] - found.boxes[..., 0])[found.valid]
    assert (widths == 0).sum() == kept


def test_an_object_is_learned_in_its_middle_by_shape_and_by_the_guided_anchors():
    """A tall object: usual anchors overlap it enough, its square does not, the guided one does."""
    batch = tiny.make_batch(objects=(1, 0), slots=2)
    tall = np.float32([24, 9, 40, 39])
    batch.boxes[0, 0] = tall
    shapes = np.log(np.array([16, 30]) / 20)
    targets = jax.device_get(program("targets")(batch, made_maps(shapes=shapes)))
    for name in ("location", "shape", "main"):
        assert targets[name].status[0, CELL] == 1, name
        assert not (targets[name].status[1] == 1).any()
    np.testing.assert_allclose(targets["shape"].boxes[0, CELL], SQUARE)
    np.testing.assert_allclose(targets["shape"].values["boxes"][0, CELL], tall)
    np.testing.assert_allclose(targets["main"].boxes[0, CELL], tall, rtol=1e-5)
    np.testing.assert_allclose(targets["main"].values["deltas"][0, CELL], 0, atol=1e-5)
    squares = jax.device_get(program("targets")(batch, made_maps()))
    positive = squares["main"].status[0] == 1
    assert 0 < positive.sum() < (targets["main"].status[0] == 1).sum()


def test_shapes_that_fit_have_hardly_a_loss_and_others_learn():
    batch = tiny.make_batch(objects=(1, 1), slots=1)
    batch.boxes[:, 0] = [24, 9, 40, 39]
    loss = tiny.jit(jax.value_and_grad(lambda shapes: shape_loss(batch, shapes)))
    right, wrong = np.log(np.float32([16, 30]) / 20), np.log(np.float32([20, 24]) / 20)
    value, _ = loss(right)
    more, gradient = loss(wrong)
    # Cells beside the middle keep a loss of their centres.
    assert value < 0.7 * more and gradient[0] > 0 > gradient[1]


def shape_loss(batch, shapes):
    module = ga_retinanet.GARetinaNet(**TINY)
    maps = made_maps()
    maps = maps._replace(shapes=tuple(x + shapes for x in maps.shapes))
    _, metrics = module.apply({}, batch, maps, method="loss", rngs={"sample": KEY})
    return metrics["loss/shape"]


def test_shapes_learn_from_a_sample():
    batch = tiny.make_batch()
    few = jax.device_get(program("targets", shape_samples=8)(batch, made_maps()))["shape"]
    every = jax.device_get(program("targets", shape_samples=10**5)(batch, made_maps()))["shape"]
    assert ((few.status >= 0).sum(1) == 8).all() and ((few.status == 1).sum(1) <= 4).all()
    assert ((every.status >= 0).sum(1) > 100).all()
    np.testing.assert_array_equal(few.status[few.status >= 0], every.status[few.status >= 0])


def test_padding_around_the_image_changes_no_loss():
    batch = tiny.make_batch()
    images = np.zeros((2, 128, 128, 3), np.uint8)
    values = dict(cls_logits=(1, -1, 0), location_logits=-2, shapes=(0.1, -0.2), box_deltas=0.1)
    all_of_them = dict(shape_samples=10**5, shape_positive_fraction=1.0)
    _, exact = program("loss", **all_of_them)(batch, made_maps(**values))
    padded = batch._replace(images=images)
    _, found = program("loss", **all_of_them)(padded, made_maps((128, 128), **values))
    for name in exact:
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-5, err_msg=name)


def test_without_objects_there_are_only_the_losses_of_background():
    batch = tiny.make_batch(objects=(0, 0))
    value, metrics = program("loss")(batch, made_maps())
    assert metrics["loss/shape"] == metrics["loss/box"] == metrics["positives"] == 0
    assert metrics["loss/location"] > 0 and metrics["loss/cls"] > 0 and np.isfinite(value)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(deform_groups=3), "deform_groups is 3; it must be a divisor of head_width, 256"),
        (dict(ignore_ratio=0.1), "ignore_ratio is 0.1; it must be from center_ratio to 1"),
        (dict(shape_stds=(1.0,)), r"shape_stds is \(1.0,\); it must be two numbers above 0"),
        (dict(shape_negative_iou=0.6), "shape_negative_iou is 0.6; it must be from 0 to shape_pos"),
        (dict(location_threshold=2.0), "location_threshold is 2.0; it must be from 0 to 1"),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    ga_retinanet.GARetinaNet().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ga_retinanet.GARetinaNet(**fields).check()

"""Guided anchors in the first stage of Faster R-CNN, from given maps, without a network."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import faster_rcnn, ga_rcnn
from detlab.ops import roi_align

FIELDS = tiny.TINY["ga_rcnn"].fields
CANVAS = (64, 96)
KEY = jax.random.key(0)
CELL = 3 * 12 + 4  # of the second level, at (32, 24) px; its square has 48 px
SECOND = 16 * 24  # cells of the first level
SQUARE = np.array([8.0, 0.0, 56.0, 48.0])


def made_maps(canvas=CANVAS, **values):
    """Maps with one value, or one for each channel, in all cells."""
    channels = {"rpn_logits": 1, "rpn_deltas": 4, "location_logits": 1, "shapes": 2}
    shapes = [(2, -(-canvas[0] // s), -(-canvas[1] // s)) for s in FIELDS["strides"]]
    found = {
        name: tuple(np.float32(np.broadcast_to(values.get(name, 0), (*s, count))) for s in shapes)
        for name, count in channels.items()
    }
    return ga_rcnn.Maps(features=(), **found)


@functools.cache
def program(method, *static, **fields):
    """The method with `static` last, compiled; arguments are arrays."""
    module = ga_rcnn.GARCNN(**FIELDS | fields)

    @tiny.jit
    def run(*arguments):
        return module.apply({}, *arguments, *static, method=method, rngs={"sample": KEY})

    return run


def rpn_of(batch, maps, **fields):
    """(targets, loss terms) of the first stage."""
    keys = jax.random.split(KEY, len(batch.images))
    targets = program("rpn_targets", **fields)(keys, batch, maps)
    return jax.device_get((targets, program("rpn_loss", **fields)(batch, maps, targets)))


@pytest.mark.parametrize("train", [False, True])
def test_likely_cells_alone_propose_in_prediction_and_all_cells_in_training(train):
    """Guided anchors twice as wide and half as high as the square, moved by their deltas."""
    maps = made_maps(rpn_logits=-3, location_logits=-9)
    maps.rpn_logits[1][0, 3, 4] = 2
    maps.location_logits[1][0, 3, 4] = 0
    maps.shapes[1][0, 3, 4] = np.log([2, 0.5]) / 0.14
    maps.rpn_deltas[1][0, 3, 4] = 0, 0.25 / 0.07, np.log(0.5) / 0.11, 0
    run = program("propose", CANVAS, train)
    found = jax.device_get(run(maps, np.int32([CANVAS, CANVAS])))
    # The anchor is 96 x 24 px around (32, 24), the proposal 48 x 24 px around (32, 30).
    np.testing.assert_allclose(found.boxes[0, 0], [8, 18, 56, 42], rtol=1e-5)
    np.testing.assert_allclose(found.scores[0, 0], 1 / (1 + np.exp(-2)), rtol=1e-5)
    if train:
        assert (found.valid.sum(1) > 10).all()
    else:
        assert found.valid.sum(1).tolist() == [1, 0]


def test_an_object_is_learned_in_its_middle_by_shape_and_by_the_guided_anchors():
    """A tall object: the guided anchor fits it without deltas, the square does not."""
    batch = tiny.make_batch(objects=(1, 0), slots=2)
    tall = np.float32([15, -10, 49, 58])  # 34 x 68 px around (32, 24)
    batch.boxes[0, 0] = tall
    fitting = made_maps(shapes=np.log(np.array([34, 68]) / 48) / 0.14)
    targets, terms = rpn_of(batch, fitting, rpn_samples=10**5, shape_samples=10**5)
    assert targets.keys() == {"location", "shape", "rpn"}
    cell = SECOND + CELL
    for name in targets:
        assert targets[name].status[0, cell] == 1, name
        assert not (targets[name].status[1] == 1).any()
    np.testing.assert_allclose(targets["shape"].boxes[0, cell], SQUARE)
    np.testing.assert_allclose(targets["shape"].values["boxes"][0, cell], tall)
    np.testing.assert_allclose(targets["rpn"].boxes[0, cell], tall, rtol=1e-5)
    np.testing.assert_allclose(targets["rpn"].values["deltas"][0, cell], 0, atol=1e-4)
    square, worse = rpn_of(batch, made_maps(), rpn_samples=10**5, shape_samples=10**5)
    for name in ("location", "shape"):
        np.testing.assert_array_equal(square[name].status, targets[name].status)
    deltas = np.log(np.array([34, 68]) / 48) / 0.11
    np.testing.assert_allclose(square["rpn"].values["deltas"][0, cell], [0, 0, *deltas], rtol=1e-4)
    assert worse["loss/shape"] > 1.5 * terms["loss/shape"] > 0
    assert worse["loss/location"] == terms["loss/location"]


def test_the_parts_of_the_rpn_have_samples_of_their_own():
    batch = tiny.make_batch()
    few, _ = rpn_of(batch, made_maps(), shape_samples=8, rpn_samples=12)
    assert ((few["shape"].status >= 0).sum(1) == 8).all()
    assert ((few["rpn"].status >= 0).sum(1) == 12).all()
    more, _ = rpn_of(batch, made_maps(), shape_samples=20, rpn_samples=12)
    np.testing.assert_array_equal(more["rpn"].status, few["rpn"].status)


def test_shapes_learn_from_their_loss_alone():
    """Scores and deltas start from anchors without a gradient, and so do proposals."""
    batch, maps = tiny.make_batch(), made_maps(shapes=0.5, rpn_deltas=0.1)
    keys = jax.random.split(KEY, 2)
    module = ga_rcnn.GARCNN(**FIELDS)

    @tiny.jit
    @functools.partial(jax.jacrev, has_aux=False)
    def gradients(shapes):
        given = maps._replace(shapes=tuple(x + shapes for x in maps.shapes))
        found = module.rpn_targets(keys, batch, given)
        proposals = module.propose(given, batch.image_size, CANVAS, True)
        return {**module.rpn_loss(batch, given, found), "proposals": proposals.boxes.sum()}

    found = gradients(jnp.zeros(2))
    assert found.pop("loss/shape").all()
    assert found.keys() == {"loss/rpn_cls", "loss/rpn_box", "loss/location", "proposals"}
    assert not any(map(np.any, found.values()))


def test_padding_around_the_image_changes_no_loss_of_the_first_stage():
    batch = tiny.make_batch()
    everything = dict(shape_samples=10**5, rpn_samples=10**5)
    everything |= dict(shape_positive_fraction=1.0, rpn_positive_fraction=1.0)
    values = dict(rpn_logits=1, location_logits=-2, shapes=(0.1, -0.2), rpn_deltas=0.1)
    _, exact = rpn_of(batch, made_maps(**values), **everything)
    padded = batch._replace(images=np.zeros((2, 128, 128, 3), np.uint8))
    _, found = rpn_of(padded, made_maps((128, 128), **values), **everything)
    assert found.keys() == exact.keys() and len(exact) == 4
    for name in exact:
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-5, err_msg=name)


def test_without_objects_there_are_only_the_losses_of_background():
    _, terms = rpn_of(tiny.make_batch(objects=(0, 0)), made_maps())
    assert terms["loss/shape"] == terms["loss/rpn_box"] == 0
    assert terms["loss/location"] > 0 and terms["loss/rpn_cls"] > 0


def lowered(monkeypatch, name):
    """The lowered program of a method of the detector on maps, where RoIAlign is a function."""
    named = jax.jit(roi_align.multilevel, static_argnums=(3, 4, 5, 6))
    monkeypatch.setattr(roi_align, "multilevel", named)
    detector = contract.from_module(ga_rcnn.GARCNN(**FIELDS))
    batch = tiny.make_batch()
    weights = jax.eval_shape(detector.init, KEY, batch.images[:1])
    maps = jax.eval_shape(tiny.maps_of(detector), *weights, batch.images)
    if name == "loss_of_maps":
        return jax.jit(detector.loss_of_maps).lower(*weights, batch, maps, KEY).as_text()
    run = jax.jit(detector.candidates, static_argnums=4)
    return run.lower(*weights, maps, batch.image_size, CANVAS).as_text()


@pytest.mark.parametrize("name", ["loss_of_maps", "candidates"])
def test_the_features_of_rois_are_computed_once(name, monkeypatch):
    assert len(re.findall(r"call @multilevel", lowered(monkeypatch, name))) == 1


def test_the_head_of_the_rpn_alone_has_other_parameters_than_that_of_faster_rcnn():
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    plain = {k: v for k, v in FIELDS.items() if k != "deform_groups"}
    shapes = []
    for module in (ga_rcnn.GARCNN(**FIELDS), faster_rcnn.FasterRCNN(**plain)):
        params, _ = jax.eval_shape(contract.from_module(module).init, KEY, images)
        shapes.append(jax.tree.map(jnp.shape, params))
    guided, tiled = shapes
    rpn = guided.pop("rpn")
    parts = {"conv", "location_logits", "shapes", "adaption", "cls_logits", "box_deltas"}
    assert set(rpn) == parts and rpn["conv"] == tiled.pop("rpn")["conv"]
    assert guided == tiled


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(deform_groups=3), "deform_groups is 3; it must be a divisor of rpn_width, 256"),
        (dict(ignore_ratio=0.1), "ignore_ratio is 0.1; it must be from center_ratio to 1"),
        (dict(shape_stds=(1.0,)), r"shape_stds is \(1.0,\); it must be two numbers above 0"),
        (dict(shape_negative_iou=0.8), "shape_negative_iou is 0.8; it must be from 0 to shape_pos"),
        (dict(scales_per_octave=0), "scales_per_octave is 0; it must be at least 1"),
        (dict(rpn_delta_stds=(0.1,)), r"rpn_delta_stds is \(0.1,\); it must be four numbers"),
        (dict(rpn_crossing=False), "rpn_crossing is False; it must be True: guided anchors may"),
        (dict(proposals=0), "proposals is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    ga_rcnn.GARCNN().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ga_rcnn.GARCNN(**fields).check()

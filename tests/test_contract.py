"""The contract between detectors and programs, on a toy module, and `build`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from ml_collections import ConfigDict

from detlab import bounds, contract, errors, layers, types
from detlab import config as config_lib


class Outputs(NamedTuple):
    features: jax.Array
    scores: jax.Array


class Body(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x, train):
        x = layers.ConvNorm(4, norm=self.norm, norm_groups=2, name="first")(x, train)
        return layers.ConvNorm(4, name="second")(x, train)


class Toy(nn.Module):
    """One score per image, a norm with statistics, a loss counter and a random draw."""

    norm: str = "batch"
    num_candidates: int = 0

    def setup(self):
        self.body = Body(self.norm)
        self.head = nn.Dense(1)
        if self.norm == "batch":
            self.losses = self.variable("loss_state", "losses", jnp.zeros, (), jnp.int32)

    def maps(self, images, train):
        features = self.body(images.astype(jnp.float32) / 255, train)
        return Outputs(features, self.head(features.mean((1, 2))))

    def targets(self, batch, maps):
        return {"main": jax.random.uniform(self.make_rng("sample"), batch.labels.shape)}

    def loss(self, batch, maps):
        if self.norm == "batch":
            self.losses.value += 1
        value = jnp.square(maps.scores - self.targets(batch, maps)["main"]).mean()
        return value, {"loss/cls": value}

    def candidates(self, maps, image_size, canvas):
        scores = maps.scores
        bounds.note(self, "num_candidates", jnp.arange(len(scores))[:, None] >= 1)
        boxes = jnp.broadcast_to(image_size.max(), (*scores.shape, 4)).astype(jnp.float32)
        return types.Detections(boxes, scores, jnp.zeros(scores.shape, int), scores > -1e9)

    def suppress(self, candidates):
        return candidates._replace(scores=candidates.scores + 1)

    def frozen_paths(self):
        return ("params/body/first/.*",)


def make_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    return types.Batch(images, *[np.zeros((2, 1), np.float32)] * 8)


@functools.cache
def toy(norm="batch"):
    detector = contract.from_module(Toy(norm))
    params, state = jax.jit(detector.init)(jax.random.key(0), make_batch().images)
    return detector, params, state


def test_init_separates_what_is_differentiated_from_the_state():
    detector, params, state = toy()
    assert set(params) == {"body", "head"}
    assert set(state) == {"batch_stats", "loss_state"}
    assert set(state["batch_stats"]["body"]["first"]["norm"]) == {"mean", "var"}
    assert detector.frozen == ("params/body/first/.*",)


def test_loss_gives_the_state_back_changed_and_of_the_same_structure():
    detector, params, state = toy()
    step = jax.jit(detector.loss)
    value, (metrics, after) = step(params, state, make_batch(), jax.random.key(1))
    assert value.shape == () and value.dtype == jnp.float32 and metrics["loss/cls"] == value
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert int(after["loss_state"]["losses"]) == 1
    mean = after["batch_stats"]["body"]["first"]["norm"]["mean"]
    assert np.all(mean != state["batch_stats"]["body"]["first"]["norm"]["mean"])
    _, (_, third) = step(params, after, make_batch(), jax.random.key(1))
    assert int(third["loss_state"]["losses"]) == 2


def test_loss_depends_on_its_key_alone_and_targets_are_those_of_the_loss():
    detector, params, state = toy()
    loss = jax.jit(lambda key: detector.loss(params, state, make_batch(), key)[0])
    targets = jax.jit(lambda key: detector.targets(params, state, make_batch(), key)["main"])
    first, second = jax.random.key(1), jax.random.key(2)
    assert loss(first) == loss(first) != loss(second)
    np.testing.assert_array_equal(targets(first), targets(first))
    assert np.any(targets(first) != targets(second))


def test_from_given_maps_everything_is_the_same_bit_for_bit():
    """Loss, gradients, both kinds of state and the random draw, without jit."""
    detector, params, state = toy()
    batch, key = make_batch(), jax.random.key(1)
    (value, (_, after)), gradients = jax.value_and_grad(detector.loss, has_aux=True)(
        params, state, batch, key
    )

    def maps_of(params):
        return detector.maps(params, state, batch.images, True)

    maps, back, advanced = jax.vjp(maps_of, params, has_aux=True)
    assert int(advanced["loss_state"]["losses"]) == 0, "only the loss advances the counter"

    def loss_of(maps):
        return detector.loss_of_maps(params, advanced, batch, maps, key)

    found, of_maps = jax.value_and_grad(loss_of, has_aux=True)(maps)
    assert jax.tree.all(jax.tree.map(np.array_equal, found[1][1], after))
    assert found[0] == value and jax.tree.all(
        jax.tree.map(np.array_equal, back(of_maps)[0], gradients)
    )
    targets = detector.targets_of_maps(params, advanced, batch, maps, key)["main"]
    np.testing.assert_array_equal(targets, detector.targets(params, state, batch, key)["main"])
    assert value == jnp.square(maps.scores - targets).mean(), (
        "targets and loss use the same random draw"
    )


def test_gradients_are_those_of_the_parameters():
    detector, params, state = toy()
    gradients, _ = jax.jit(jax.grad(detector.loss, has_aux=True))(
        params, state, make_batch(), jax.random.key(1)
    )
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["head"]))


def test_a_module_without_state_has_an_empty_one():
    detector, params, state = toy("group")
    assert state == {}
    value, (_, after) = jax.jit(detector.loss)(params, state, make_batch(), jax.random.key(1))
    assert np.isfinite(value) and after == {}


def test_predict_is_suppress_of_candidates_with_running_statistics():
    detector, params, state = toy()
    images, size = make_batch().images, jnp.full((2, 2), 6)
    maps = jax.jit(tiny.maps_of(detector))(params, state, images)
    assert isinstance(maps, Outputs)
    candidates = jax.jit(tiny.candidates_of(detector))(params, state, images, size)
    np.testing.assert_allclose(candidates.scores, maps.scores, rtol=1e-6)
    predicted = jax.jit(detector.predict)(params, state, images, size)
    assert isinstance(predicted, types.Detections)
    np.testing.assert_allclose(predicted.scores, candidates.scores + 1, rtol=1e-6)
    alone = jax.jit(tiny.maps_of(detector))(params, state, images[:1])  # no batch statistics
    np.testing.assert_allclose(alone.scores, maps.scores[:1], rtol=1e-5)


def test_predict_with_bounds_also_tells_where_they_were_exceeded():
    detector, params, state = toy()
    images, size = make_batch().images, jnp.full((2, 2), 6)
    predicted = jax.jit(detector.predict)(params, state, images, size)
    found, exceeded = jax.jit(detector.predict_with_bounds)(params, state, images, size)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found, predicted))
    assert {k: v.tolist() for k, v in exceeded.items()} == {"num_candidates": [False, True]}


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("body", {"body"}),
        ("body/first", {"body/first"}),
        (
            "body/.*",
            {"body/first", "body/first/conv", "body/first/norm", "body/second", "body/second/conv"},
        ),
        (".*/conv", {"body/first/conv", "body/second/conv"}),
        ("first", set()),
        ("nothing", set()),
    ],
)
def test_taps_are_the_outputs_of_modules_whose_whole_path_matches(pattern, found):
    detector, params, state = toy()
    assert set(detector.taps(params, state, make_batch().images, pattern)) == found


def test_a_tap_is_the_value_that_the_maps_come_from():
    detector, params, state = toy()
    taps = detector.taps(params, state, make_batch().images, "body|head")
    maps, _ = detector.maps(params, state, make_batch().images, False)
    np.testing.assert_array_equal(taps["body"], maps.features)
    np.testing.assert_array_equal(taps["head"], maps.scores)


# build


def config(detector="retinanet", **model):
    return ConfigDict(dict(detector=detector, model=model))


def test_build_fills_the_fields_of_the_detector_that_the_file_name_selects():
    detector = contract.build(
        config(num_classes=3, depth=18, backbone_norm="batch", frozen_stages=0)
    )
    assert isinstance(detector, contract.Detector) and detector.frozen == ()
    params, _ = jax.eval_shape(detector.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert params["head"]["cls_logits"]["bias"].shape == (9 * 3,)
    assert "stage4_block1" in params["backbone"] and "stage4_block2" not in params["backbone"]


@pytest.mark.parametrize(
    "detector, canvas, words",
    [
        (
            "yolov5",
            (100, 96),
            "YOLOv5 needs sides that are multiples of 32, not 100x96 px.",
        ),
        ("darknet", (100, 100), "images of 100x100 px: yolov4, line "),
    ],
)
@pytest.mark.parametrize("key", ["canvases", "multiscale_canvases"])
def test_a_canvas_that_the_network_cannot_take_is_refused_before_anything_is_built(
    detector, canvas, words, key
):
    of_data = dict(canvases=((64, 96), (96, 64)), multiscale_canvases=())
    good = ConfigDict(dict(detector=detector, model={}, data=of_data))
    contract.build(good)
    canvases = ((64, 64), canvas)
    good.data[key] = (canvases,) if key == "multiscale_canvases" else canvases
    with pytest.raises(errors.UserError) as caught:
        contract.build(good)
    assert str(caught.value).startswith(f"config.data.{key} contains {canvas}: {words}")


def test_frozen_paths_follow_the_fields():
    assert r"\w+/backbone/stem/.*" in contract.build(config()).frozen


@pytest.mark.parametrize("name", ["retinanett", "__init__", "../train", ""])
def test_an_unknown_detector_lists_those_that_exist(name):
    with pytest.raises(errors.UserError) as caught:
        contract.build(config(name))
    message = str(caught.value)
    assert message.startswith(f"config.detector is {name!r}; it must be one of ")
    listed = message.split("one of ")[1].rstrip(".").split(", ")
    assert "retinanet" in listed and "__init__" not in listed and listed == sorted(listed)


@pytest.mark.parametrize(
    "field, sentence",
    [
        (
            "num_class",
            "config.model.num_class: detector retinanet has no such field."
            " Did you mean 'num_classes'?",
        ),
        ("zzz", "config.model.zzz: detector retinanet has no such field."),
        (
            "flip_test",
            "config.model.flip_test: detector retinanet has no such field."
            " Set config.eval.views=('image','mirror') instead.",
        ),
        ("parent", "config.model.parent: detector retinanet has no such field."),
        ("name", "config.model.name: detector retinanet has no such field."),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(field, sentence):
    with pytest.raises(errors.UserError) as caught:
        contract.build(config(**{field: 3}))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(num_classes=0), "num_classes is 0; it must be at least 1."),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101."),
        (dict(depth="50"), "depth is '50'; it must be of type int."),
        (dict(style="foo"), "style is 'foo'; it must be pytorch or caffe."),
        (dict(backbone_norm="foo"), "backbone_norm is 'foo'; it must be one of batch, stored,"),
        (
            dict(backbone_norm="group", backbone_width=48),
            "backbone_width is 48; it must be divisible by 32 when backbone_norm is group.",
        ),
        (dict(frozen_stages=5), "frozen_stages is 5; it must be from 0 to 4."),
        (dict(backbone_width=0), "backbone_width is 0; it must be at least 1."),
        (dict(backbone_stages=(1, 1, 1)), "backbone_stages is (1, 1, 1); it must be four"),
        (dict(backbone_stages=(1, 1, 0, 1)), "backbone_stages is (1, 1, 0, 1); it must be four"),
        (
            dict(backbone_stages=(1, 1, 1.5, 1)),
            "backbone_stages is (1, 1, 1.5, 1); it must be four",
        ),
        (dict(backbone_stages=4), "backbone_stages is 4; it must be four"),
        (dict(neck_width=-1), "neck_width is -1; it must be at least 1."),
        (dict(head_convs=-1), "head_convs is -1; it must be at least 0."),
        (dict(head_width=0), "head_width is 0; it must be at least 1."),
        (dict(prior_probability=0.0), "prior_probability is 0.0; it must be between 0 and 1."),
        (dict(prior_probability=1), "prior_probability is 1; it must be between 0 and 1."),
        (dict(strides=()), "strides is (); it must be 8, 16, 32 and so on"),
        (dict(strides=(4, 8, 16)), "strides is (4, 8, 16); it must be 8, 16, 32 and so on"),
        (dict(strides=("8",)), "strides is ('8',); it must be 8, 16, 32 and so on"),
        (dict(octave_base_scale=0.0), "octave_base_scale is 0.0; it must be above 0."),
        (dict(scales_per_octave=0), "scales_per_octave is 0; it must be at least 1."),
        (dict(aspect_ratios=()), "aspect_ratios is (); it must be one or more numbers above 0."),
        (dict(aspect_ratios=(1.0, "2")), "aspect_ratios is (1.0, '2'); it must be one or more"),
        (dict(delta_stds=(0.1, 0.2)), "delta_stds is (0.1, 0.2); it must be four numbers above 0."),
        (
            dict(delta_stds=(0.1, 0.1, 0.0, 0.2)),
            "delta_stds is (0.1, 0.1, 0.0, 0.2); it must be four",
        ),
        (dict(positive_iou=1.5), "positive_iou is 1.5; it must be above 0 and at most 1."),
        (dict(negative_iou=0.6), "negative_iou is 0.6; it must be from 0 to positive_iou."),
        (dict(focal_alpha=2.0), "focal_alpha is 2.0; it must be from 0 to 1."),
        (dict(focal_gamma=-1.0), "focal_gamma is -1.0; it must be at least 0."),
        (dict(box_weight=-1.0), "box_weight is -1.0; it must be at least 0."),
        (dict(candidates_per_level=0), "candidates_per_level is 0; it must be at least 1."),
        (dict(score_threshold=5.0), "score_threshold is 5.0; it must be from 0 to 1."),
        (dict(nms_iou=float("nan")), "nms_iou is nan; it must be from 0 to 1."),
        (dict(max_detections=0), "max_detections is 0; it must be at least 1."),
        (
            dict(pixel_mean=(0.0, "a", 0.0)),
            "pixel_mean is (0.0, 'a', 0.0); it must be three numbers.",
        ),
        (dict(pixel_std=(1.0, 1.0, 0.0)), "pixel_std is (1.0, 1.0, 0.0); it must be three numbers"),
        (
            dict(dtype="float99"),
            "dtype is 'float99'; it must be one of float32, bfloat16, float16.",
        ),
    ],
)
def test_a_value_that_no_retinanet_can_have_is_named_before_anything_is_built(fields, sentence):
    with pytest.raises(errors.UserError) as caught:
        contract.build(config(**fields))
    assert str(caught.value).startswith(f"config.model.{sentence}")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(backbone_norm="group", backbone_width=32),
        dict(backbone_stages=(1, 1, 1, 1), strides=(8, 16, 32), head_convs=0, frozen_stages=0),
        dict(positive_iou=0.5, negative_iou=0.5, score_threshold=0, dtype="bfloat16"),
    ],
)
def test_values_at_the_edges_are_taken(fields):
    assert isinstance(contract.build(config(**fields)), contract.Detector)


@pytest.mark.parametrize("names", [(), ("x",), ("image", "x")])
def test_a_view_that_is_not_there_is_named(names):
    unchecked = ConfigDict(dict(detector="retinanet", model={}, eval=dict(views=names)))
    with pytest.raises(errors.UserError) as caught:
        contract.build(unchecked)
    sentence = f"config.eval.views is {names!r}; it must be one or more of image, mirror."
    assert str(caught.value) == sentence


def test_the_number_of_classes_is_the_configs_or_the_detectors_default():
    assert contract.num_classes(config(num_classes=3)) == 3
    assert contract.num_classes(config(depth=18)) == 80
    with pytest.raises(errors.UserError, match="config.detector is 'retina'"):
        contract.num_classes(config("retina"))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"predict.model.nms_io": "0.5"},
            "config.predict.model.nms_io: detector yolov5 has no such field."
            " Did you mean 'nms_iou'?",
        ),
        (
            {"predict.model.num_candidates": "0.5"},
            "config.predict.model.num_candidates is 0.5; it must be of type int.",
        ),
        (
            {"predict.model.anchor_ratio": "0.5"},
            "config.predict.model.anchor_ratio is 0.5; it must be above 1.",
        ),
        (
            {"predict.rectangles": "48"},
            "config.predict.rectangles is 48: YOLOv5 needs sides that are multiples of 32, not"
            " 48x48 px.",
        ),
        (
            {"eval.rectangles": "16"},
            "config.eval.rectangles is 16: YOLOv5 needs sides that are multiples of 32, not 16x16"
            " px.",
        ),
    ],
)
def test_what_the_demo_and_evaluation_need_is_checked_by_its_key(changes, sentence):
    config = config_lib.load("yolov5_coco")
    for key, text in changes.items():
        with config.predict.model.ignore_type():
            config_lib.override(config, key, text)
    with pytest.raises(errors.UserError) as caught:
        contract.build(config)
    assert str(caught.value) == sentence

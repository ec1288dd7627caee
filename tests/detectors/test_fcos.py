"""FCOS, built tiny: targets, loss, detections."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import traverse_util

from detlab import contract
from detlab.detectors import fcos

IMPROVED = dict(
    center_radius=1.5,
    distances_in_strides=True,
    centerness_on_box=True,
    box_loss="giou",
    conv_bias=True,
)
TINY = {k: v for k, v in tiny.TINY["fcos"].fields.items() if k not in IMPROVED}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("fcos")


@pytest.fixture(scope="module")
def detector(subject):
    return subject.detector


@pytest.fixture(scope="module")
def variables(subject):
    return subject.variables


@pytest.fixture(scope="module")
def targets(subject):
    return lambda *args: subject.targets(*args)["main"]


@pytest.fixture(scope="module")
def predict(subject):
    return subject.predict


@pytest.fixture(scope="module")
def loss(subject):
    return subject.loss


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_raw_maps_have_one_cell_a_stride(detector, variables, size):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    outputs = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        cells = (2, -(-size[0] // stride), -(-size[1] // stride))
        assert outputs.features[level].shape == (*cells, 16)
        assert outputs.cls_logits[level].shape == (*cells, 3)
        assert outputs.box_distances[level].shape == (*cells, 4)
        assert outputs.centerness[level].shape == (*cells, 1)
        assert outputs.cls_logits[level].dtype == jnp.float32


def test_only_the_improved_form_has_biases_in_its_towers():
    def paths(**fields):
        detector = contract.from_module(fcos.FCOS(**TINY, **fields))
        params, _ = jax.eval_shape(detector.init, KEY, jax.ShapeDtypeStruct((1, 64, 64, 3), "u1"))
        return set(traverse_util.flatten_dict(params, sep="/"))

    plain, improved = paths(), paths(**IMPROVED)
    biases = {"head/cls_conv0/conv/bias", "head/box_conv0/conv/bias"}
    assert improved - plain == biases and not plain - improved
    assert {f"box_scales/scale{i}" for i in range(5)} < plain


def test_centerness_reads_the_tower_that_is_asked_for():
    for on_box in (True, False):
        head = fcos.FCOS(**TINY, centerness_on_box=on_box).bind({}).head
        assert ("centerness" in head.box_outputs) == on_box
        assert ("centerness" in head.cls_outputs) == (not on_box)


@pytest.mark.slow
def test_overfitting_one_batch_lowers_the_loss_and_finds_its_objects(subject, detector, predict):
    batch = tiny.make_batch()
    optimizer = optax.adam(3e-3)
    params, state = subject.initial

    @tiny.jit_loop
    def run(params, state):
        def update(carry, _):
            params, state, opt_state = carry
            grad = jax.value_and_grad(detector.loss, has_aux=True)
            (value, (_, state)), grads = grad(params, state, batch, KEY)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), state, opt_state), value

        carry = params, state, optimizer.init(params)
        return jax.lax.scan(update, carry, length=200)

    (params, state, _), values = run(params, state)
    assert values[-1] < 0.5 * values[0]  # the cross entropy of centerness does not reach 0
    found = predict(params, state, batch.images, batch.image_size)
    for i in range(2):
        for box, label in zip(batch.boxes[i, :3], batch.labels[i, :3]):
            same = np.asarray(found.valid[i] & (found.labels[i] == label))
            distance = np.abs(np.asarray(found.boxes[i])[same] - box).max(1)
            assert distance.min() < 8, "a detection of its class within 8 px"


def test_loss_uses_targets(detector, variables, monkeypatch):
    """Another assignment changes both, so the targets that tools show are those of training."""
    batch = tiny.make_batch()

    def run():  # new functions, because jit would not trace known ones again
        targets = tiny.jit(lambda *args: detector.targets(*args)["main"])
        loss = tiny.jit(lambda *args: detector.loss(*args))
        return targets(*variables, batch, KEY), loss(*variables, batch, KEY)

    before, (value, _) = run()
    assign = fcos.points_lib.assign

    def everything_negative(*args, **kwargs):
        assigned = assign(*args, **kwargs)
        return assigned._replace(status=jnp.zeros_like(assigned.status))

    monkeypatch.setattr(fcos.points_lib, "assign", everything_negative)
    after, (changed, (metrics, _)) = run()
    assert (before.status == 1).any() and not (after.status == 1).any()
    assert changed != value and metrics["loss/box"] == 0 and metrics["loss/centerness"] == 0


def test_targets_are_the_distances_from_the_middles_of_cells(targets, variables):
    batch = tiny.make_batch()
    found = jax.device_get(targets(*variables, batch, KEY))
    for i, n in np.argwhere(found.status == 1):
        stride = 8 * 2 ** found.level[i, n]
        x1, y1, x2, y2 = found.boxes[i, n]
        assert x2 - x1 == y2 - y1 == stride
        left, top, right, bottom = found.values["distances"][i, n] * stride
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        box = batch.boxes[i, found.matched[i, n]]
        np.testing.assert_allclose([x - left, y - top, x + right, y + bottom], box, atol=1e-4)


def test_a_larger_canvas_around_the_content_changes_no_target(variables, targets):
    batch = tiny.make_batch()
    canvas = np.zeros((2, 128, 128, 3), np.uint8)
    canvas[:, :64, :96] = batch.images
    padded = targets(*variables, batch._replace(images=canvas), KEY)
    exact = targets(*variables, batch, KEY)
    assert (padded.status == 1).sum() == (exact.status == 1).sum() > 0
    corner = np.asarray(padded.boxes[0, :, :2])  # of the cell
    outside = (corner[:, 0] >= 96) | (corner[:, 1] >= 64)
    assert (np.asarray(padded.status[0]) == -1).tolist() == outside.tolist()


def test_images_without_objects_train_on_background_alone(loss, variables):
    (value, (metrics, _)), _ = loss(*variables, tiny.make_batch(objects=(0, 0)), KEY)
    assert metrics["loss/box"] == metrics["loss/centerness"] == metrics["positives"] == 0
    assert np.isfinite(value) and metrics["normaliser"] == 1


def test_every_level_scale_learns(loss, variables):
    _, grads = loss(*variables, tiny.make_batch(), KEY)
    assert any(np.any(grads["box_scales"][f"scale{i}"]) for i in range(5))


def test_detections_are_clipped_to_the_content(predict, variables):
    params, state = variables
    params = jax.tree.map(lambda x: x, params)
    params["head"]["cls_logits"]["bias"] = jnp.zeros_like(params["head"]["cls_logits"]["bias"])
    params["head"]["box_distances"]["bias"] = jnp.ones(4)
    size = np.int32([[64, 96], [40, 50]])
    found = jax.device_get(predict(params, state, tiny.make_batch().images, size))
    for boxes, valid, (height, width) in zip(found.boxes, found.valid, size):
        assert valid.any()
        assert (boxes >= 0).all() and (boxes[:, 2:] <= [width, height]).all()


def test_the_threshold_is_of_class_scores_and_the_score_has_the_centerness(subject, variables):
    images, size = tiny.make_batch().images, tiny.make_batch().image_size
    params, state = jax.tree.map(lambda x: x, variables)
    params["head"]["cls_logits"] = jax.tree.map(jnp.zeros_like, params["head"]["cls_logits"])
    params["head"]["centerness"] = jax.tree.map(jnp.zeros_like, params["head"]["centerness"])
    params["head"]["centerness"]["bias"] -= 5.0
    params["head"]["box_distances"]["bias"] = jnp.ones(4)
    found = subject.candidates(params, state, images, size)
    assert found.valid.any()
    score = 0.5 / (1 + np.exp(5.0))  # below the threshold of 0.05
    np.testing.assert_allclose(found.scores[found.valid], score, rtol=1e-5)


@pytest.mark.slow
def test_rematerialisation_keeps_the_paths(detector, variables):
    again = contract.from_module(fcos.FCOS(**TINY, **IMPROVED, remat=True))
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    found = jax.eval_shape(again.init, KEY, images)
    assert jax.tree.structure(found) == jax.tree.structure(variables)


def test_frozen_paths_are_those_of_a_caffe_backbone():
    module = fcos.FCOS()
    patterns = module.frozen_paths()

    def is_frozen(path):
        return any(re.fullmatch(p, path) for p in patterns)

    assert is_frozen("params/backbone/stem/conv/kernel")
    assert is_frozen("params/backbone/stage4_block0/conv1/norm/scale")
    assert not is_frozen("params/backbone/stage4_block0/conv1/conv/kernel")
    assert not is_frozen("params/head/cls_conv0/norm/scale")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(box_loss="l1"), "box_loss is 'l1'; it must be iou or giou"),
        (dict(level_limits=(64, 32)), "level_limits is .*; it must be 4 rising numbers above 0"),
        (dict(level_limits=(64, 32, 8, 4)), "level_limits is .* 4 rising numbers above 0"),
        (dict(norm_groups=3), "norm_groups is 3; it must be a divisor of head_width, 256"),
        (dict(center_radius=-1.0), "center_radius is -1.0; it must be at least 0"),
        (dict(pixel_std=(0.0, 1.0, 1.0)), "pixel_std is .*; it must be three numbers above 0"),
        (dict(strides=(4, 8)), "strides is .* one for each level from P3 up"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    fcos.FCOS().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        fcos.FCOS(**fields).check()

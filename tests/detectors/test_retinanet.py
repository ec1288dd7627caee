"""RetinaNet, built tiny: targets, loss, detections."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from detlab import contract
from detlab.detectors import retinanet

TINY = tiny.TINY["retinanet"].fields
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("retinanet")


@pytest.fixture(scope="module")
def detector(subject):
    return subject.detector


@pytest.fixture(scope="module")
def variables(subject):
    return subject.variables


@pytest.fixture(scope="module")
def targets(subject):
    return subject.targets


@pytest.fixture(scope="module")
def predict(subject):
    return subject.predict


@pytest.fixture(scope="module")
def loss(subject):
    return subject.loss


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_raw_maps_have_one_cell_a_stride_and_nine_anchors_a_cell(detector, variables, size):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    outputs = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        cells = (2, -(-size[0] // stride), -(-size[1] // stride))
        assert outputs.features[level].shape == (*cells, 16)
        assert outputs.cls_logits[level].shape == (*cells, 9 * 3)
        assert outputs.box_deltas[level].shape == (*cells, 9 * 4)
        assert outputs.cls_logits[level].dtype == jnp.float32


def test_initial_scores_are_the_prior(subject, variables):
    images = tiny.make_batch().images
    head = tiny.jit(lambda images: subject.detector.init(KEY, images)[0]["head"])(images)
    outputs = subject.maps({**variables[0], "head": head}, variables[1], images)
    scores = np.concatenate([np.ravel(jax.nn.sigmoid(x)) for x in outputs.cls_logits])
    assert 0.005 < scores.mean() < 0.02  # pi = 0.01


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
        return jax.lax.scan(update, carry, length=150)

    (params, state, _), values = run(params, state)
    assert values[-1] < 0.25 * values[0]
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
    assign = retinanet.max_iou.assign

    def everything_negative(*args, **kwargs):
        assigned = assign(*args, **kwargs)
        return assigned._replace(status=jnp.zeros_like(assigned.status))

    monkeypatch.setattr(retinanet.max_iou, "assign", everything_negative)
    after, (changed, (metrics, _)) = run()
    assert (before.status == 1).any() and not (after.status == 1).any()
    assert changed != value and metrics["loss/box"] == 0


def test_a_larger_canvas_around_the_content_changes_no_target(variables, targets):
    batch = tiny.make_batch()
    canvas = np.zeros((2, 128, 128, 3), np.uint8)
    canvas[:, :64, :96] = batch.images
    padded = targets(*variables, batch._replace(images=canvas), KEY)["main"]
    exact = targets(*variables, batch, KEY)["main"]
    assert (padded.status == 1).sum() == (exact.status == 1).sum()
    stride = np.array([8, 16, 32, 64, 128])[padded.level[0]]
    centre = (np.asarray(padded.boxes[0, :, :2]) + np.asarray(padded.boxes[0, :, 2:])) / 2
    outside = (centre[:, 0] >= -(-96 // stride) * stride) | (
        centre[:, 1] >= -(-64 // stride) * stride
    )
    assert (np.asarray(padded.status[0])[outside] == -1).all()


def test_images_without_objects_train_on_background_alone(loss, variables):
    batch = tiny.make_batch()
    empty = batch._replace(valid=np.zeros_like(batch.valid), boxes=np.zeros_like(batch.boxes))
    (value, (metrics, _)), grads = loss(*variables, empty, KEY)
    assert metrics["loss/box"] == 0 and metrics["positives"] == 0 and np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_detections_are_clipped_to_the_content(predict, variables):
    params, state = variables
    params = jax.tree.map(lambda x: x, params)
    params["head"]["cls_logits"]["bias"] = jnp.zeros_like(params["head"]["cls_logits"]["bias"])
    size = np.int32([[64, 96], [40, 50]])
    found = jax.device_get(predict(params, state, tiny.make_batch().images, size))
    for boxes, valid, (height, width) in zip(found.boxes, found.valid, size):
        assert valid.any()
        assert (boxes >= 0).all() and (boxes[:, 2:] <= [width, height]).all()


def test_taps_return_the_maps_that_a_pattern_names(subject, detector, variables):
    images = tiny.make_batch().images
    taps = tiny.jit(detector.taps, static_argnums=3)
    found = taps(*variables, images, r"neck/output\d|head/cls_conv0")
    outputs = [f"neck/output{level}" for level in range(3, 8)]
    shared = [f"head/cls_conv0:{call}" for call in range(5)]
    assert sorted(found) == sorted(outputs + shared)
    features = subject.maps(*variables, images).features
    np.testing.assert_allclose(found["neck/output3"], features[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rematerialisation_changes_neither_values_nor_paths(subject, loss):
    variables = subject.initial
    module = retinanet.RetinaNet(**TINY, remat=True)
    again = contract.from_module(module)
    batch = tiny.make_batch()
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    assert jax.tree.structure(jax.eval_shape(again.init, KEY, images)) == jax.tree.structure(
        variables
    )
    compute = tiny.jit(jax.value_and_grad(again.loss, has_aux=True))
    (value, (_, state)), grads = compute(*variables, batch, KEY)
    (expected, (_, expected_state)), expected_grads = loss(*variables, batch, KEY)
    # The same float32 operations, which XLA may fuse and so round differently.
    assert value == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # Statistics are updated once, not again when blocks are recomputed.
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_rematerialisation_keeps_less_for_the_gradient():
    """Bytes that the forward pass stores for the backward pass, the same on every platform.

    A platform's own figure may say less: XLA's CPU backend schedules without regard to memory.
    """

    def kept(remat):
        module = retinanet.RetinaNet(**{**TINY, "depth": 50, "backbone_stages": None}, remat=remat)
        detector = contract.from_module(module)
        batch = tiny.make_batch()
        params, state = jax.eval_shape(detector.init, KEY, batch.images)

        def backward(params, state):
            return jax.vjp(lambda p: detector.loss(p, state, batch, KEY)[0], params)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, params, state))
        return sum(x.size * x.dtype.itemsize for x in residuals)

    assert kept(remat=True) < 0.6 * kept(remat=False)  # neck, head and loss are not rematerialised


def test_normaliser_is_the_sum_of_positives_with_one_at_least_an_image(loss, targets, variables):
    batch = tiny.make_batch()
    valid = batch.valid.copy()
    valid[1] = False
    batch = batch._replace(valid=valid, boxes=batch.boxes * valid[..., None])
    (_, (metrics, _)), _ = loss(*variables, batch, KEY)
    positives = (np.asarray(targets(*variables, batch, KEY)["main"].status) == 1).sum(1)
    assert positives[0] > 1 and positives[1] == 0
    assert metrics["normaliser"] == positives[0] + 1
    assert metrics["normaliser"].dtype == jnp.float32


def test_frozen_parts_get_no_gradient(variables):
    module = retinanet.RetinaNet(**{**TINY, "backbone_norm": "stored", "frozen_stages": 1})
    frozen = contract.from_module(module)
    params, state = variables
    grads, (_, new_state) = tiny.jit(jax.grad(frozen.loss, has_aux=True))(
        params, state, tiny.make_batch(), KEY
    )
    for name in ("stem", "stage1_block0"):
        assert all(not np.any(g) for g in jax.tree.leaves(grads["backbone"][name]))
    assert any(np.any(g) for g in jax.tree.leaves(grads["backbone"]["stage2_block0"]))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new_state)):
        np.testing.assert_array_equal(a, b)

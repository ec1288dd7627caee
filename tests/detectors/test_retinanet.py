"""RetinaNet, built tiny: contract, targets, loss, detections."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from detlab import detector as detector_lib
from detlab import types
from detlab.detectors import retinanet

TINY = dict(
    num_classes=3,
    depth=18,
    backbone_width=8,
    backbone_stages=(1, 1, 1, 1),
    backbone_norm="batch",
    frozen_stages=0,
    neck_width=16,
    head_width=16,
    head_convs=1,
    octave_base_scale=3.0,
)
KEY = jax.random.key(0)


def make_batch(num_images=2, size=(64, 96), slots=4, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, (size[1] - 40, size[0] - 40), (num_images, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 40, corner.shape)], -1)
    valid = np.arange(slots) < slots - 1
    valid = np.broadcast_to(valid, (num_images, slots)).copy()
    return types.Batch(
        images=rng.integers(0, 256, (num_images, *size, 3), np.uint8),
        boxes=np.float32(boxes * valid[..., None]),
        labels=rng.integers(0, 3, (num_images, slots), np.int32),
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.tile(np.int32(size), (num_images, 1)),
        placement=np.tile(np.float32([1, 1, 0, 0]), (num_images, 1)),
        index=np.arange(num_images, dtype=np.int32),
        real=np.ones(num_images, bool),
    )


@pytest.fixture(scope="module")
def detector():
    return detector_lib.from_module(retinanet.RetinaNet(**TINY))


@pytest.fixture(scope="module")
def variables(detector):
    return jax.jit(detector.init)(KEY, jnp.zeros((1, 64, 96, 3), jnp.uint8))


@pytest.fixture(scope="module")
def targets(detector):
    return jax.jit(detector.targets)


@pytest.fixture(scope="module")
def predict(detector):
    return jax.jit(detector.predict)


@pytest.fixture(scope="module")
def loss(detector):
    return jax.jit(jax.value_and_grad(detector.loss, has_aux=True))


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_raw_maps_have_one_cell_a_stride_and_nine_anchors_a_cell(detector, variables, size):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    outputs = jax.eval_shape(detector.forward, *variables, images)
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        cells = (2, -(-size[0] // stride), -(-size[1] // stride))
        assert outputs.features[level].shape == (*cells, 16)
        assert outputs.cls_logits[level].shape == (*cells, 9 * 3)
        assert outputs.box_deltas[level].shape == (*cells, 9 * 4)
        assert outputs.cls_logits[level].dtype == jnp.float32


def test_initial_scores_are_the_prior(detector, variables):
    images = make_batch().images
    outputs = jax.jit(detector.forward)(*variables, images)
    scores = np.concatenate([np.ravel(jax.nn.sigmoid(x)) for x in outputs.cls_logits])
    assert 0.005 < scores.mean() < 0.02  # pi = 0.01


def test_loss_terms_add_up_and_state_keeps_its_tree(loss, variables):
    (value, (metrics, state)), grads = loss(*variables, make_batch(), KEY)
    terms = [v for k, v in metrics.items() if k.startswith("loss/")]
    assert value == pytest.approx(float(sum(terms)), rel=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(variables[1])
    assert jax.tree.structure(grads) == jax.tree.structure(variables[0])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, variables[1])
    assert all(jax.tree.leaves(moved)), "live norms update all their statistics"


def test_overfitting_one_batch_lowers_the_loss_and_finds_its_objects(detector, predict, variables):
    batch = make_batch()
    optimizer = optax.adam(3e-3)
    params, state = variables

    @jax.jit
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
    """Another assignment changes both, so the targets that tools show are those that train."""
    batch = make_batch()

    def run():  # functions of their own, as jit would not trace known ones again
        targets = jax.jit(lambda *args: detector.targets(*args)["main"])
        loss = jax.jit(lambda *args: detector.loss(*args))
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


def test_padding_changes_nothing(variables, loss, targets):
    """More slots, and a larger canvas around the content, leave targets and loss as they are."""
    batch = make_batch(slots=4)
    wide = jax.tree.map(lambda x: x, batch)._replace(
        boxes=np.pad(batch.boxes, ((0, 0), (0, 3), (0, 0))),
        labels=np.pad(batch.labels, ((0, 0), (0, 3))),
        valid=np.pad(batch.valid, ((0, 0), (0, 3))),
        ignore=np.pad(batch.ignore, ((0, 0), (0, 3))),
    )
    (value, _), grads = loss(*variables, batch, KEY)
    (wide_value, _), wide_grads = loss(*variables, wide, KEY)
    assert wide_value == pytest.approx(float(value), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wide_grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

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
    batch = make_batch()
    empty = batch._replace(valid=np.zeros_like(batch.valid), boxes=np.zeros_like(batch.boxes))
    (value, (metrics, _)), grads = loss(*variables, empty, KEY)
    assert metrics["loss/box"] == 0 and metrics["positives"] == 0 and np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_detections_are_sorted_clipped_and_padded_with_zeros(predict, variables):
    params, state = variables
    params = jax.tree.map(lambda x: x, params)
    params["head"]["cls_logits"]["bias"] = jnp.zeros_like(params["head"]["cls_logits"]["bias"])
    size = np.int32([[64, 96], [40, 50]])
    found = predict(params, state, make_batch().images, size)
    for i in range(2):
        valid = np.asarray(found.valid[i])
        count = int(valid.sum())
        assert valid[:count].all() and count > 0
        scores, boxes = np.asarray(found.scores[i]), np.asarray(found.boxes[i])
        assert (np.diff(scores[:count]) <= 0).all()
        assert (boxes[:count, 2:] > boxes[:count, :2]).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] <= size[i][::-1]).all()
        assert not boxes[count:].any() and not scores[count:].any()
        assert not np.asarray(found.labels[i])[count:].any()


def test_predict_is_suppress_of_candidates(detector, predict, variables):
    images, size = make_batch().images, make_batch().image_size
    candidates = jax.jit(detector.candidates)(*variables, images, size)
    predicted = predict(*variables, images, size)
    for a, b in zip(jax.jit(detector.suppress)(candidates), predicted):
        np.testing.assert_array_equal(a, b)


def test_taps_return_the_maps_that_a_pattern_names(detector, variables):
    images = make_batch().images
    taps = jax.jit(detector.taps, static_argnums=3)
    found = taps(*variables, images, r"neck/output\d|head/cls_conv0")
    outputs = [f"neck/output{level}" for level in range(3, 8)]
    shared = [f"head/cls_conv0:{call}" for call in range(5)]
    assert sorted(found) == sorted(outputs + shared)
    features = jax.jit(detector.forward)(*variables, images).features
    np.testing.assert_allclose(found["neck/output3"], features[0], rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_in_16_bits_and_reduces_in_32(variables, loss):
    low = detector_lib.from_module(retinanet.RetinaNet(**TINY, dtype="bfloat16"))
    batch = make_batch()
    lowered = jax.jit(jax.value_and_grad(low.loss, has_aux=True)).lower(*variables, batch, KEY)
    # The program as the compiler gets it: XLA's CPU backend emulates 16 bits in 32.
    convolutions = re.findall(r"stablehlo\.convolution.*-> tensor<\S*x(\w+)>", lowered.as_text())
    assert len(convolutions) > 20 and set(convolutions) == {"bf16"}

    (value, (metrics, state)), grads = lowered.compile()(*variables, batch, KEY)
    floats = jax.tree.leaves((value, metrics, state, grads))
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    (expected, (terms, _)), _ = loss(*variables, batch, KEY)
    assert value == pytest.approx(float(expected), rel=0.02)
    assert value != expected, "fewer bits are seen"
    for name in ("loss/cls", "loss/box"):
        assert metrics[name] == pytest.approx(float(terms[name]), rel=0.02)


def test_bfloat16_keeps_raw_maps_targets_and_boxes_in_32_bits(variables):
    low = detector_lib.from_module(retinanet.RetinaNet(**TINY, dtype="bfloat16"))
    batch = make_batch()
    outputs = jax.eval_shape(low.forward, *variables, batch.images)
    targets = jax.eval_shape(low.targets, *variables, batch, KEY)["main"]
    found = jax.eval_shape(low.predict, *variables, batch.images, batch.image_size)
    in_32_bits = outputs.cls_logits, outputs.box_deltas, targets.boxes, targets.values
    assert {x.dtype for x in jax.tree.leaves((in_32_bits, found.boxes, found.scores))} == {
        jnp.dtype(jnp.float32)
    }
    assert {x.dtype for x in outputs.features} == {jnp.dtype(jnp.bfloat16)}


def test_rematerialisation_changes_neither_values_nor_paths(detector, variables, loss):
    module = retinanet.RetinaNet(**TINY, remat=True)
    again = detector_lib.from_module(module)
    batch = make_batch()
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    assert jax.tree.structure(jax.eval_shape(again.init, KEY, images)) == jax.tree.structure(
        variables
    )
    compute = jax.jit(jax.value_and_grad(again.loss, has_aux=True))
    (value, (_, state)), grads = compute(*variables, batch, KEY)
    (expected, (_, expected_state)), expected_grads = loss(*variables, batch, KEY)
    # The same float32 operations, which XLA may fuse and so round in another way.
    assert value == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # Statistics are updated once, not again where blocks are computed again.
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_rematerialisation_keeps_less_for_the_gradient():
    """Bytes of what the forward pass hands to the backward pass, on every platform the same.

    A platform's own figure may say less: XLA's CPU backend orders the work without regard to it.
    """

    def kept(remat):
        module = retinanet.RetinaNet(**{**TINY, "depth": 50, "backbone_stages": None}, remat=remat)
        detector = detector_lib.from_module(module)
        batch = make_batch()
        params, state = jax.eval_shape(detector.init, KEY, batch.images)

        def backward(params, state):
            return jax.vjp(lambda p: detector.loss(p, state, batch, KEY)[0], params)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, params, state))
        return sum(x.size * x.dtype.itemsize for x in residuals)

    assert kept(remat=True) < 0.6 * kept(remat=False)  # neck, head and loss keep theirs


def test_normaliser_is_the_sum_of_positives_with_one_at_least_an_image(loss, targets, variables):
    batch = make_batch()
    valid = batch.valid.copy()
    valid[1] = False
    batch = batch._replace(valid=valid, boxes=batch.boxes * valid[..., None])
    (_, (metrics, _)), _ = loss(*variables, batch, KEY)
    positives = (np.asarray(targets(*variables, batch, KEY)["main"].status) == 1).sum(1)
    assert positives[0] > 1 and positives[1] == 0
    assert metrics["normaliser"] == positives[0] + 1
    assert metrics["normaliser"].dtype == jnp.float32


def test_frozen_parts_get_no_gradient():
    module = retinanet.RetinaNet(**{**TINY, "backbone_norm": "stored", "frozen_stages": 1})
    frozen = detector_lib.from_module(module)
    params, state = jax.jit(frozen.init)(KEY, jnp.zeros((1, 64, 96, 3), jnp.uint8))
    grads, (_, new_state) = jax.jit(jax.grad(frozen.loss, has_aux=True))(
        params, state, make_batch(), KEY
    )
    for name in ("stem", "stage1_block0"):
        assert all(not np.any(g) for g in jax.tree.leaves(grads["backbone"][name]))
    assert any(np.any(g) for g in jax.tree.leaves(grads["backbone"]["stage2_block0"]))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new_state)):
        np.testing.assert_array_equal(a, b)

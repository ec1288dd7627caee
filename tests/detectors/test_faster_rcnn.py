"""Faster R-CNN, built tiny: proposals and samples, what each term reads, thresholds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from detlab import detector as detector_lib
from detlab.detectors import faster_rcnn

FIELDS = tiny.TINY["faster_rcnn"].fields
SAMPLES = FIELDS["box_samples"]
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def detector():
    return detector_lib.from_module(faster_rcnn.FasterRCNN(**FIELDS))


@pytest.fixture(scope="module")
def variables(detector):
    return tiny.jit(detector.init)(KEY, jnp.zeros((1, 64, 96, 3), jnp.uint8))


@pytest.fixture(scope="module")
def loss(detector):
    return tiny.jit(jax.value_and_grad(detector.loss, has_aux=True))


@pytest.fixture(scope="module")
def targets(detector):
    return tiny.jit(detector.targets)


def test_shapes_of_both_stages(detector, variables):
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.uint8)
    outputs = jax.eval_shape(detector.forward, *variables, images)
    for level, stride in enumerate((4, 8, 16, 32)):
        cells = (2, -(-64 // stride), -(-96 // stride))
        assert outputs.rpn_logits[level].shape == (*cells, 3)
        assert outputs.rpn_deltas[level].shape == (*cells, 12)
    count = FIELDS["proposals"]
    assert outputs.proposals.boxes.shape == (2, count, 4)
    assert outputs.cls_logits.shape == (2, count, 4) and outputs.box_deltas.shape == (2, count, 12)


def test_objects_are_sampled_as_proposals_of_themselves(variables, targets):
    batch = tiny.make_batch(objects=(4, 2))
    found = jax.device_get(targets(*variables, batch, KEY))
    proposals, box = found["proposals"], found["box"]
    count = FIELDS["train_proposals"]
    np.testing.assert_array_equal(proposals.boxes[:, count:], batch.boxes)
    np.testing.assert_array_equal(proposals.status[:, count:] == 1, batch.valid)
    for i in range(2):
        own = np.flatnonzero(batch.valid[i])
        np.testing.assert_array_equal(proposals.matched[i, count + own], own)
        positive = box.status[i] == 1
        assert 0 < positive.sum() <= SAMPLES // 4
        # The deltas lead from a RoI to its object.
        rois, gts = box.boxes[i, positive], batch.boxes[i][box.matched[i, positive]]
        centre = (rois[:, :2] + rois[:, 2:]) / 2
        size = rois[:, 2:] - rois[:, :2]
        delta = box.values["deltas"][i, positive] * faster_rcnn.FasterRCNN.delta_stds
        np.testing.assert_allclose(
            centre + delta[:, :2] * size, (gts[:, :2] + gts[:, 2:]) / 2, atol=1e-2
        )


def test_padding_is_never_sampled(variables, targets):
    """Neither empty slots, nor empty rows of proposals, nor anchors on padding."""
    batch = tiny.make_batch(objects=(1, 0))
    size = np.int32([[40, 50], [8, 8]])  # few proposals are left
    found = jax.device_get(targets(*variables, batch._replace(image_size=size), KEY))
    rpn, proposals, box = found["rpn"], found["proposals"], found["box"]
    assert (proposals.status == -1).any(1).all(), "there are rows that must not be sampled"
    for i, (height, width) in enumerate(size):
        taken = box.values["index"][i][box.status[i] >= 0]
        assert (proposals.status[i][taken] >= 0).all() and len(set(taken)) == len(taken)
        # Slots fill up to what there is.
        assert len(taken) <= min(SAMPLES, (proposals.status[i] >= 0).sum())
        sampled = rpn.status[i] >= 0
        stride = np.array([4, 8, 16, 32])[rpn.level[i]]
        centre = (rpn.boxes[i, :, :2] + rpn.boxes[i, :, 2:]) / 2
        inside = (centre < [width, height]).all(1)  # of a cell, whose corner the centre is
        assert sampled.sum() > 0 and inside[sampled].all(), stride[sampled]
        assert sampled.sum() <= FIELDS["rpn_samples"]


def test_samples_depend_on_the_key_and_the_image_alone(variables, targets):
    batch = tiny.make_batch(objects=(3, 3))
    same = jax.tree.map(lambda x: np.stack([x[0], x[0]]), batch)
    first = jax.device_get(targets(*variables, same, KEY))["rpn"].status
    again = jax.device_get(targets(*variables, batch, KEY))["rpn"].status
    other = jax.device_get(targets(*variables, same, jax.random.key(1)))["rpn"].status
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != first[1]).any(), "each image draws for itself"
    assert (first != other).any()


def test_without_objects_everything_is_background(loss, variables):
    (value, (metrics, _)), _ = loss(*variables, tiny.make_batch(objects=(0, 0)), KEY)
    assert metrics["loss/rpn_box"] == metrics["loss/box"] == metrics["positives"] == 0
    assert value == pytest.approx(float(metrics["loss/rpn_cls"] + metrics["loss/cls"]), rel=1e-6)


def test_the_proposals_get_no_gradient_from_the_box_head(detector, variables):
    """The second stage alone, as a function of the first: its RoIs are constants."""
    module = faster_rcnn.FasterRCNN(**FIELDS)
    params, state = variables
    batch = tiny.make_batch()

    def second(rpn):
        tree = {**params, "rpn": rpn}
        _, (metrics, _) = detector.loss(tree, state, batch, KEY)
        return metrics["loss/cls"] + metrics["loss/box"]

    grads = tiny.jit(jax.grad(second))(params["rpn"])
    assert not any(np.any(g) for g in jax.tree.leaves(grads))
    assert module.sampling_ratio == 2


def test_deltas_of_a_label_are_its_own_four():
    deltas = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    picked = faster_rcnn.of_label(jnp.array(deltas), jnp.array([2, 0]))
    np.testing.assert_array_equal(picked, [deltas[0, 8:], deltas[1, :4]])


@pytest.mark.slow
def test_overfitting_one_batch_lowers_the_loss(detector, variables):
    batch = tiny.make_batch()
    optimizer = optax.adam(3e-3)

    @jax.jit
    def run(params, state):
        def update(carry, key):
            params, state, opt_state = carry
            grad = jax.value_and_grad(detector.loss, has_aux=True)
            (value, (_, state)), grads = grad(params, state, batch, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), state, opt_state), value

        carry = params, state, optimizer.init(params)
        return jax.lax.scan(update, carry, jax.random.split(KEY, 60))

    _, values = run(*variables)
    assert values[-5:].mean() < 0.5 * values[:5].mean()


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(strides=(8, 16, 32, 64)), "strides is .* those of P2 upward"),
        (dict(rpn_negative_iou=0.8), "rpn_negative_iou is 0.8; it must be 0 to rpn_positive_iou"),
        (dict(proposals=0), "proposals is 0; it must be at least 1"),
        (dict(box_positive_fraction=1.5), "box_positive_fraction is 1.5; it must be 0 to 1"),
        (dict(sampling_ratio=-1), "sampling_ratio is -1; it must be at least 0"),
        (dict(delta_stds=(0.1,)), "delta_stds is .* four numbers above 0"),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    faster_rcnn.FasterRCNN().check()
    with pytest.raises(ValueError, match=re.compile(f"^{sentence}")):
        faster_rcnn.FasterRCNN(**fields).check()

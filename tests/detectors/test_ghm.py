"""GHM on RetinaNet, built tiny: its two losses and their state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import ghm, retinanet
from detlab.run import checkpoint

TINY = tiny.TINY["ghm"].fields
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("ghm")


@pytest.fixture(scope="module")
def detector(subject):
    return subject.detector


@pytest.fixture(scope="module")
def variables(subject):
    return subject.variables


@pytest.fixture(scope="module")
def loss(subject):
    return subject.loss


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_parameters_and_outputs_are_those_of_retinanet(detector, variables, size):
    plain = contract.from_module(retinanet.RetinaNet(**TINY))
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    params, state = jax.eval_shape(plain.init, KEY, images)
    assert jax.tree.map(jnp.shape, variables[0]) == jax.tree.map(jnp.shape, params)
    assert jax.tree.structure(variables[1]) == jax.tree.structure(
        {**state, "loss_state": {"cls_counts": 0, "box_counts": 0}}
    )
    outputs, expected = (
        jax.eval_shape(tiny.maps_of(d), *variables, images) for d in (detector, plain)
    )
    assert jax.tree.map(jnp.shape, outputs) == jax.tree.map(jnp.shape, expected)


def test_counts_start_at_zero_and_only_training_changes_them(detector, variables, loss):
    counts = variables[1]["loss_state"]
    assert counts["cls_counts"].shape == (30,) and counts["box_counts"].shape == (10,)
    assert not any(np.any(x) for x in jax.tree.leaves(counts))
    (_, (_, state)), _ = loss(*variables, tiny.make_batch(), KEY)
    assert jax.tree.structure(state) == jax.tree.structure(variables[1])
    assert all(np.any(x) for x in jax.tree.leaves(state["loss_state"]))


def test_every_level_is_counted_in_turn(detector, variables, loss):
    """The averages after a step, from raw maps and targets, level by level in NumPy."""
    batch = tiny.make_batch()
    stored = contract.from_module(ghm.GHM(**{**TINY, "backbone_norm": "stored"}))

    @tiny.jit
    def everything(params, state, batch):
        maps, state = stored.maps(params, state, batch.images, True)
        _, (_, new_state) = stored.loss_of_maps(params, state, batch, maps, KEY)
        targets = stored.targets_of_maps(params, state, batch, maps, KEY)["main"]
        return maps, targets, new_state["loss_state"]

    params, state = variables
    # Scores near a half and deltas near 0, so that some bins stay empty.
    small = {**params, "head": jax.tree.map(lambda x: 0.1 * x, params["head"])}
    outputs, targets, state = jax.device_get(everything(small, state, batch))
    labels = np.take_along_axis(batch.labels, targets.matched, 1)
    one_hot = np.eye(3)[labels] * (targets.status == 1)[..., None]
    cls_counts, box_counts = np.zeros(30), np.zeros(10)
    for level in range(5):
        here = targets.level[0] == level
        status = targets.status[:, here]
        logits = outputs.cls_logits[level].reshape(2, -1, 3)
        norms = np.abs(1 / (1 + np.exp(-logits)) - one_hot[:, here])[status >= 0]
        add(cls_counts, norms, 0.75)
        deltas = outputs.box_deltas[level].reshape(2, -1, 4)
        distance = (deltas - targets.values["deltas"][:, here])[status == 1]
        add(box_counts, np.abs(distance) / np.hypot(distance, 0.02), 0.7)
    np.testing.assert_allclose(state["cls_counts"], cls_counts, rtol=1e-5)
    np.testing.assert_allclose(state["box_counts"], box_counts, rtol=1e-5)
    assert 0 < (box_counts > 0).sum() and (cls_counts > 0).sum() < 30


def add(counts, norms, momentum):
    found, _ = np.histogram(norms, len(counts), (0, 1))
    counts[found > 0] = momentum * counts[found > 0] + (1 - momentum) * found[found > 0]


def test_a_full_set_of_slots_and_images_without_objects_train(loss, variables):
    batch = tiny.make_batch()
    boxes = tiny.make_batch(seed=1).boxes
    boxes[:, 3] = [[10, 10, 50, 60], [0, 0, 96, 64]]
    full = batch._replace(valid=np.ones_like(batch.valid), boxes=boxes)
    (value, (metrics, state)), _ = loss(*variables, full, KEY)
    assert np.isfinite(value) and metrics["positives"] > 0

    params, _ = variables
    empty = batch._replace(valid=np.zeros_like(batch.valid), boxes=np.zeros_like(batch.boxes))
    (value, (metrics, after)), grads = loss(params, state, empty, KEY)
    assert metrics["loss/box"] == metrics["positives"] == 0 and np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    before, after = state["loss_state"], after["loss_state"]
    np.testing.assert_array_equal(after["box_counts"], before["box_counts"])
    assert np.any(after["cls_counts"] != before["cls_counts"])


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(loss, variables, tmp_path):
    params, state = variables
    for seed in range(2):
        (_, (_, state)), _ = loss(params, state, tiny.make_batch(seed=seed), KEY)
    (expected, (_, expected_state)), _ = loss(params, state, tiny.make_batch(seed=2), KEY)
    checkpoint.save_weights(tmp_path / "weights", params, state, {})
    weights = checkpoint.load_weights(tmp_path / "weights")
    (value, (_, new_state)), _ = loss(weights.params, weights.state, tiny.make_batch(seed=2), KEY)
    assert value == expected
    for a, b in zip(jax.tree.leaves(new_state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_array_equal(a, b)
    fresh, _ = loss(params, variables[1], tiny.make_batch(seed=2), KEY)
    assert fresh[0] != expected, "the counts matter"


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(cls_bins=0), "cls_bins is 0; it must be at least 1"),
        (dict(box_momentum=1.0), "box_momentum is 1.0; it must be at least 0 and below 1"),
        (dict(box_mu=0.0), "box_mu is 0.0; it must be above 0"),
        (
            dict(focal_gamma=1.0),
            "focal_gamma is 1.0; it must be left at its default: GHM has no focal",
        ),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    ghm.GHM().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ghm.GHM(**fields).check()

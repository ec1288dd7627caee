"""What Dynamic R-CNN changes in Faster R-CNN: a threshold and a beta that follow the training."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import config as config_lib
from detlab import sharding, trained, types
from detlab.detectors import dynamic_rcnn, faster_rcnn
from detlab.experiments import common
from detlab.run import checkpoint, optim
from detlab.run import state as state_lib

FIELDS = tiny.TINY["dynamic_rcnn"].fields
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("dynamic_rcnn")


class Lists:
    """The reference's records, in Python lists."""

    def __init__(self, interval, lowest, highest):
        self.interval, self.lowest, self.highest = interval, lowest, highest
        self.iou, self.beta, self.ious, self.deltas = 0, 0, [], []

    def step(self, iou, delta):
        self.ious.append(iou)
        if delta is not None:
            self.deltas.append(delta)
        if len(self.ious) == self.interval:
            self.iou = max(self.lowest, np.mean(self.ious))
            if self.deltas and np.median(self.deltas) >= 1e-15:
                self.beta = min(self.highest, np.median(self.deltas))
            self.ious, self.deltas = [], []
        return self.iou, self.beta


@pytest.mark.parametrize("interval", [1, 7, 100])
def test_threshold_and_beta_follow_the_rule_over_250_steps(interval):
    """IoUs rise from below the lowest threshold; every third step has no positive."""
    rng = np.random.default_rng(interval)
    ious = np.float32(np.linspace(0.2, 0.8, 250) + rng.normal(0, 0.05, 250))
    deltas = np.float32(np.linspace(1.5, 0.1, 250) * rng.uniform(0.8, 1.2, 250))
    deltas[::3] = -1
    deltas[30:44] = -1  # with 7, no positive from one renewal to the next
    plain = Lists(interval, 0.4, 1.0)
    expected = [plain.step(i, None if d < 0 else d) for i, d in zip(ious, deltas)]

    @tiny.jit
    def run(now, records):
        def step(now, record):
            then = dynamic_rcnn.advance(now, *record, 0.4, 1.0)
            return then, (then.iou, then.beta)

        return jax.lax.scan(step, now, records)

    last, found = run(dynamic_rcnn.at_first(interval), (ious, deltas))
    np.testing.assert_allclose(np.stack(found, 1), np.array(expected), rtol=1e-5)
    assert last.steps == 250 % interval


def make_targets(status, deltas):
    zeros = np.zeros(status.shape)
    return types.Targets(zeros, zeros, status, zeros, {"deltas": deltas})


@pytest.mark.parametrize("positives", [(0, 0), (3, 0), (9, 4), (20, 20)])
def test_the_recorded_delta_is_the_ranked_one_of_all_images(positives):
    rng = np.random.default_rng(0)
    status = np.stack([rng.permutation(np.arange(20) < n) for n in positives]).astype(np.int32)
    deltas = np.float32(rng.normal(size=(2, 20, 4)))
    found = dynamic_rcnn.ranked_delta(make_targets(status, deltas), rank=5)
    sizes = np.sort(np.abs(deltas[status == 1][:, :2]).mean(-1))
    expected = sizes[min(10, len(sizes)) - 1] if len(sizes) else -1
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@functools.partial(tiny.jit, static_argnums=(0,))
def sample(rank, iou, boxes, valid, batch):
    module = dynamic_rcnn.DynamicRCNN(**FIELDS | dict(iou_rank=rank, box_samples=100))
    first = dynamic_rcnn.at_first(FIELDS["update_interval"])
    state = {"loss_state": first._replace(iou=iou)._asdict()}
    proposals = faster_rcnn.proposals_lib.Proposals(boxes, jnp.ones(valid.shape), valid)
    keys = jax.random.split(KEY, len(boxes))
    return module.apply(state, keys, proposals, batch, method="sample")


def test_positives_and_the_recorded_iou_are_those_of_proposals_and_objects():
    """An object of height 10 and proposals as wide, so that their IoUs are their heights / 10."""
    heights = np.array([9, 2, 7, 5, 4, 8])
    boxes = np.zeros((2, 6, 4), np.float32)
    boxes[..., 2], boxes[..., 3] = 10, heights
    batch = tiny.make_batch(objects=(1, 0), slots=2)
    objects = np.zeros_like(batch.boxes)
    objects[0, 0] = [0, 0, 10, 10]
    valid = np.array([[True] * 5 + [False]] * 2)  # the last proposal is empty
    for rank, iou, expected in ((1, 0.75, 1), (3, 0.65, 0.7), (6, 0.45, 0.2), (75, 0.3, 0.2)):
        found = sample(rank, np.float32(iou), boxes, valid, batch._replace(boxes=objects))
        np.testing.assert_allclose(found.ranked_iou, [expected, 0], rtol=1e-6)
        assert (found.status == 1).sum(1).tolist() == [1 + (heights[:5] / 10 >= iou).sum(), 0]


def test_a_step_uses_the_values_before_it_and_records(subject):
    params, state = subject.variables
    assert set(state["loss_state"]) == set(dynamic_rcnn.Training._fields)
    assert not any(map(np.any, state["loss_state"].values())), "all zeros at first"
    old = np.full(FIELDS["update_interval"], 7, np.float32)
    changed = state["loss_state"] | dict(beta=np.float32(0.01), deltas=old, ious=old)
    changed = {**state, "loss_state": changed}
    batch = tiny.make_batch(objects=(3, 2))
    (_, (metrics, _)), _ = subject.loss(params, state, batch, KEY)
    (_, (smaller, after)), _ = subject.loss(params, changed, batch, KEY)
    assert metrics["positive_iou"] == 0.5 and metrics["box_beta"] == 1
    assert smaller["loss/box"] > metrics["loss/box"], "the gradient of small errors is larger"
    after = after["loss_state"]
    assert after["steps"] == 1 and after["beta"] == np.float32(0.01)
    for records in (after["ious"], after["deltas"]):
        assert 0 <= records[0] < 7 and (records[1:] == 7).all()


def test_without_positives_nothing_is_recorded_and_all_is_finite(subject):
    params, state = subject.variables
    nothing = tiny.make_batch(objects=(0, 0))
    for _ in range(FIELDS["update_interval"]):
        (value, (metrics, state)), gradients = subject.loss(params, state, nothing, KEY)
        assert metrics["positives"] == metrics["loss/box"] == 0
        for leaf in jax.tree.leaves((value, state, gradients)):
            assert np.isfinite(leaf).all()
    after = state["loss_state"]
    assert after["steps"] == 0 and after["beta"] == 0, "there is no delta"
    assert after["iou"] == np.float32(FIELDS["lowest_iou"]), "the recorded IoUs are 0"


def test_training_goes_on_in_the_middle_of_the_records_bit_for_bit(subject, tmp_path):
    """Saved after 6 steps of an interval of 4; the next renewal is two steps later."""
    params, state = subject.variables
    batches = [tiny.make_batch(objects=(3, 2), seed=seed) for seed in range(10)]

    def train(state, batches):
        thresholds, losses = [], []
        for batch in batches:
            (value, (_, state)), _ = subject.loss(params, state, batch, KEY)
            losses.append(float(value))
            thresholds.append(float(state["loss_state"]["iou"]))
        return state, losses, thresholds

    middle, _, _ = train(state, batches[:6])
    expected, losses, thresholds = train(middle, batches[6:])
    assert middle["loss_state"]["steps"] == 2 and len(set(thresholds)) == 2

    config = common.base("dynamic_rcnn")
    optimizer = optim.build(config.optim, params, 1000, 2, 1, subject.detector.frozen)
    whole = state_lib.of_weights(params, middle, optimizer, config)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(whole, {})
    shapes = jax.eval_shape(
        lambda p, s: state_lib.of_weights(p, s, optimizer, config), params, middle
    )
    restored = checkpoints.restore(shapes)
    checkpoints.close()
    again, same_losses, same = train(restored.state, batches[6:])
    assert (same_losses, same) == (losses, thresholds)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    lost = {**middle, "loss_state": state["loss_state"]}
    assert train(lost, batches[6:])[2] != thresholds, "the records matter"


def test_weights_without_records_or_with_those_of_another_interval_predict(subject):
    """Files of the reference have none."""
    params, state = subject.variables
    others = {name: tree for name, tree in state.items() if name != "loss_state"}
    config = config_lib.load("dynamic_rcnn_shapes:tiny")
    for records in ({}, {"loss_state": dynamic_rcnn.at_first(9)._asdict()}):
        weights = checkpoint.Weights(params, others | records, {}, pathlib.Path("weights"))
        _, found = trained.fit(subject.detector, config, weights, sharding.make_mesh())
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, state)
        assert not any(map(np.any, found["loss_state"].values()))


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(update_interval=0), "update_interval is 0; it must be at least 1"),
        (dict(delta_rank=0), "delta_rank is 0; it must be at least 1"),
        (dict(lowest_iou=0.0), "lowest_iou is 0.0; it must be above 0 and at most 1"),
        (dict(highest_beta=0.0), "highest_beta is 0.0; it must be above 0"),
        (dict(proposals=0), "proposals is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    dynamic_rcnn.DynamicRCNN().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        dynamic_rcnn.DynamicRCNN(**fields).check()

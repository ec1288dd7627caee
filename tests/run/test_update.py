"""One update on hand-checked numbers, then on RetinaNet: accumulation, averages, freezing."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from detlab import contract, types
from detlab.detectors import retinanet
from detlab.experiments import common
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import update as update_lib


def settings(accumulate=1, **changes):
    """A config for plain gradient descent with rate 1, with changes in its `optim`."""
    config = common.base("retinanet")
    config.train.update(batch_size=4, accumulate=accumulate)
    config.optim.update(name="sgd", lr=1.0, lr_batch_size=0, momentum=0.0, weight_decay=0.0)
    config.optim.update(schedule="constant", warmup_steps=0)
    config.optim.update(changes)
    return config


def build_optimizer(config, params, frozen):
    batch_size = config.train.batch_size
    return optim.build(
        config.optim, params, 10, batch_size=batch_size, steps_per_unit=1, frozen=frozen
    )


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def norm(values):
    return np.sqrt(sum(np.square(np.float64(v)).sum() for v in values))


def closed_form(values, decays):
    """sum_i (1 - d_i) d_(i+1) ... d_n v_i; the first value has the weight d_1 ... d_n."""
    weights = [(1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    weights = [np.prod(decays), *weights]
    return sum(w * np.float64(v) for w, v in zip(weights, values, strict=True))


# ------------------------------------------------------------------------------------------------
# Hand-checked numbers

PARAMS = {"trained": np.float32([3.0, 4.0]), "constant": np.float32([5.0])}
STATE = {
    "batch_stats": {"mean": np.float32(10.0), "count": np.int32(0)},
    "loss_state": {"last": np.float32(0.0), "kept": np.int32(7)},
}
PIXELS = np.float32([1.0, 2.0, 3.0, 5.0])  # images of one pixel
OBJECTS = np.array([1, 2, 4, 1])
EMPTY = types.Batch(*[np.zeros(4, np.float32)] * 9)
BATCH = EMPTY._replace(images=PIXELS[:, None, None, None], valid=np.arange(4) < OBJECTS[:, None])


def toy(reports_normaliser=True):
    """The loss s * (a + 2 b + 100 c), s = sum of pixels / n, n = number of objects or images.

    Its gradient is (s, 2 s) for the trained leaf (a, b), and 100 s for the constant leaf c.
    """

    def loss(params, state, batch, rng):
        pixels = batch.images[:, 0, 0, 0]
        objects = batch.valid.sum().astype(jnp.float32)
        scale = pixels.sum() / (objects if reports_normaliser else pixels.size)
        value = scale * (params["trained"] @ jnp.array([1.0, 2.0]) + 100 * params["constant"][0])
        old = state["batch_stats"]
        stats = {"mean": 0.5 * old["mean"] + 0.5 * pixels.mean(), "count": old["count"] + 1}
        state = {"batch_stats": stats, "loss_state": {**state["loss_state"], "last": pixels[0]}}
        metrics = {"loss/only": value, "first": pixels[0], "draw": jax.random.uniform(rng)}
        if reports_normaliser:
            metrics["normaliser"] = objects
        return value, (metrics, state)

    parts = dict.fromkeys(contract.Detector._fields)
    return contract.Detector(**parts | dict(loss=loss, frozen=("params/constant",)))


def toy_update(config, detector):
    """(update, state of step 0)"""
    optimizer = build_optimizer(config, PARAMS, detector.frozen)
    params, state = jax.tree.map(jnp.array, (PARAMS, STATE))
    initial = state_lib.of_weights(params, state, optimizer, config)
    return update_lib.of(detector, optimizer, config), initial


def run_toy(config, detector=None, steps=1):
    """Host copies of states 0, 1, ..., and the metrics of the last update."""
    update, state = toy_update(config, detector or toy())
    update = jax.jit(update, donate_argnums=0)  # as in the train loop
    states = [jax.tree.map(np.array, state)]
    for _ in range(steps):
        state, metrics = update(state, BATCH)
        states.append(jax.tree.map(np.array, state))
    return states, jax.device_get(metrics)


def moved(states):
    return states[0].params["trained"] - states[1].params["trained"]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_parts_count_by_their_normaliser(accumulate):
    states, metrics = run_toy(settings(accumulate))
    scale = 11 / 8  # all pixels over all objects; the mean over two equal parts would be 1.97
    np.testing.assert_allclose(moved(states), [scale, 2 * scale], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], scale * (3 + 8 + 500), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/only"], metrics["loss"], rtol=1e-6)
    assert metrics["normaliser"] == 8


def test_parts_count_the_same_without_a_normaliser():
    states, metrics = run_toy(settings(accumulate=2), toy(reports_normaliser=False))
    np.testing.assert_allclose(moved(states), [11 / 4, 11 / 2], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 11 / 4 * 511, rtol=1e-6)
    assert "normaliser" not in metrics


def test_state_passes_through_parts_of_every_second_row():
    states, metrics = run_toy(settings(accumulate=2))
    # Rows 0 and 2 have the mean 2, rows 1 and 3 the mean 3.5: 10 -> 6 -> 4.75.
    assert states[1].state["batch_stats"] == {"mean": 4.75, "count": 2}
    assert states[1].state["loss_state"] == {"last": 2.0, "kept": 7}
    assert metrics["first"] == 1.5  # metrics that are no loss terms are averaged over parts
    assert states[1].step == 1


def test_parts_draw_their_own_random_numbers():
    _, whole = run_toy(settings())
    _, metrics = run_toy(settings(accumulate=2))
    key = jax.random.fold_in(jax.random.key(0), 0)
    draws = [jax.random.uniform(jax.random.fold_in(key, j)) for j in range(2)]
    assert whole["draw"] == jax.random.uniform(key)
    np.testing.assert_allclose(metrics["draw"], np.mean(draws), rtol=1e-6)


def test_a_batch_in_one_part_has_no_loop():
    update, state = toy_update(settings(), toy())
    assert "scan" not in str(jax.make_jaxpr(update)(state, BATCH))
    update, state = toy_update(settings(accumulate=2), toy())
    assert "scan" in str(jax.make_jaxpr(update)(state, BATCH))


def test_parts_that_are_not_equal_are_refused():
    update, state = toy_update(settings(accumulate=3), toy())
    with pytest.raises(ValueError, match="4 images cannot be split into 3 equal parts"):
        update(state, BATCH)


def test_clipping_and_norms_leave_out_frozen_leaves():
    states, metrics = run_toy(settings(clip_norm=1.0, lr=0.5, lr_batch_size=8))
    length = 11 / 8 * np.sqrt(5)  # 137.5 with the constant leaf
    np.testing.assert_allclose(metrics["grad_norm"], length, rtol=1e-6)
    assert metrics["lr"] == 0.25  # for 4 images; 0.5 for 8
    np.testing.assert_allclose(moved(states), 0.25 * np.array([1, 2]) / np.sqrt(5), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["param_norm"], norm([states[1].params["trained"]]), rtol=1e-6
    )


def test_what_warms_up_is_among_the_metrics_of_its_step():
    warm = dict(warmup_steps=4, warmup_factor=0.0, warmup_momentum=0.5, warmup_bias_lr=3.0)
    config = settings(momentum=0.9, biases=("params/trained",), **warm)
    _, metrics = run_toy(config, steps=2)  # metrics of the second step, a quarter into warm-up
    np.testing.assert_allclose(metrics["momentum"], 0.6, rtol=1e-6)
    np.testing.assert_allclose(metrics["lr_biases"], 2.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["lr"], 0.25, rtol=1e-6)
    assert not {"momentum", "lr_biases"} & run_toy(settings())[1].keys()


@pytest.mark.parametrize(
    "warmup, decays",
    [
        (0, [0.9, 0.9, 0.9]),
        # 0.9 (1 - exp(-step / 2)) of steps 1, 2, 3
        (2, [0.354122406, 0.568908503, 0.699182856]),
    ],
)
def test_averages_equal_their_closed_form(warmup, decays):
    states, _ = run_toy(settings(ema_decay=0.9, ema_warmup=warmup), steps=3)
    last = states[-1]
    trained = closed_form([s.params["trained"] for s in states], decays)
    mean = closed_form([s.state["batch_stats"]["mean"] for s in states], decays)
    # Three float32 operations a step.
    np.testing.assert_allclose(last.ema["params"]["trained"], trained, rtol=1e-6)
    np.testing.assert_allclose(last.ema["state"]["batch_stats"]["mean"], mean, rtol=1e-6)
    # Constants, counts and other collections are not averaged.
    np.testing.assert_array_equal(last.ema["params"]["constant"], PARAMS["constant"])
    assert last.ema["state"]["batch_stats"]["count"] == 3
    assert last.ema["state"]["loss_state"] == last.state["loss_state"]


def test_averages_start_as_copies_and_are_what_is_evaluated():
    _, state = toy_update(settings(ema_decay=0.9), toy())
    params, model_state = state_lib.evaluated(state)
    assert params is state.ema["params"] and model_state is state.ema["state"]
    for average, value in zip(jax.tree.leaves(state.ema), jax.tree.leaves((PARAMS, STATE))):
        np.testing.assert_array_equal(average, value)


def test_without_averages_the_values_are_evaluated():
    states, _ = run_toy(settings())
    params, model_state = state_lib.evaluated(states[1])
    assert states[1].ema is None
    assert params is states[1].params and model_state is states[1].state


# ------------------------------------------------------------------------------------------------
# RetinaNet

FROZEN_BY_CONFIG = "params/neck/output5/.*"


def retina(**changes):
    fields = dict(num_classes=4, depth=18, backbone_width=8, backbone_stages=(1, 1, 1, 1))
    fields |= dict(neck_width=16, head_width=16, head_convs=1, octave_base_scale=3.0)
    return contract.from_module(retinanet.RetinaNet(**fields, **changes))


def make_batch(seed=0):
    """Four images; of two parts of every second image, one has 3 objects and the other 12."""
    num_images, num_objects = 4, np.array([1, 4, 2, 8])
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (num_images, 8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 24, corner.shape)], -1)
    valid = np.arange(8) < num_objects[:, None]
    return types.Batch(
        images=rng.integers(0, 256, (num_images, 64, 64, 3), np.uint8),
        boxes=np.float32(boxes * valid[..., None]),
        labels=rng.integers(0, 4, (num_images, 8), np.int32) * valid,
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.full((num_images, 2), 64, np.int32),
        placement=np.tile(np.float32([1, 1, 0, 0]), (num_images, 1)),
        index=np.arange(num_images, dtype=np.int32),
        real=np.ones(num_images, bool),
    )


@functools.cache
def retina_weights():
    """Weights for all norm modes, which have the same paths."""
    params, state = jax.jit(retina().init)(jax.random.key(0), make_batch().images)
    # Statistics that differ from the initial ones, so that any change shows.
    state = jax.tree.map(lambda x: x + 0.25, state)
    return jax.device_get((params, state))


def run_retina(config, detector, steps):
    """Like `run_toy`, with the metrics of every update."""
    weights = retina_weights()
    optimizer = build_optimizer(config, weights[0], detector.frozen)
    initial = jax.jit(lambda p, s: state_lib.of_weights(p, s, optimizer, config))
    state = jax.device_put(initial(*weights), jax.devices()[0])
    update = jax.jit(update_lib.of(detector, optimizer, config), donate_argnums=0)
    states, metrics = [jax.tree.map(np.array, state)], []
    for step in range(steps):
        state, values = update(state, make_batch(seed=step))
        states.append(jax.tree.map(np.array, state))
        metrics.append(jax.device_get(values))
    return states, metrics


@pytest.mark.slow
def test_parts_equal_one_batch():
    """Norms are the same in training and inference; the parts have 3 and 12 objects."""
    detector = retina(backbone_norm="stored")
    (_, one), (expected,) = run_retina(settings(lr=0.1), detector, steps=1)
    (before, two), (found,) = run_retina(settings(accumulate=2, lr=0.1), detector, steps=1)
    # float32 sums in a different order.
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    expected, start = flat(one.params), flat(before.params)
    for path, value in flat(two.params).items():
        np.testing.assert_allclose(value, expected[path], atol=1e-5, err_msg=path)
    change = norm(expected[p] - start[p] for p in start)
    assert change > 0.1, "the update must be far above the tolerance"


@pytest.fixture(scope="module")
def five_updates():
    """Five updates with all options: live norms above a frozen stage, and a frozen output."""
    config = settings(
        lr=0.05,
        momentum=0.9,
        weight_decay=0.1,
        no_decay=(r"params/.*/bias",),
        freeze=(FROZEN_BY_CONFIG,),
        clip_norm=0.5,
        ema_decay=0.9,
        ema_warmup=2,
    )
    detector = retina(backbone_norm="batch", frozen_stages=1)
    states, metrics = run_retina(config, detector, steps=5)
    return states, metrics, (*detector.frozen, FROZEN_BY_CONFIG)


def split(paths, patterns):
    """(paths that match, the others)"""
    frozen = {p for p in paths if any(re.fullmatch(f, p) for f in patterns)}
    return frozen, set(paths) - frozen


def leaves(state):
    return flat({"params": state.params, **state.state})


def test_frozen_leaves_and_statistics_are_bit_equal_after_five_updates(five_updates):
    states, _, patterns = five_updates
    before, after = leaves(states[0]), leaves(states[5])
    frozen, others = split(before, patterns)
    for part in ("params/backbone/stem", "batch_stats/backbone/stage1", "params/neck/output5"):
        assert any(p.startswith(part) for p in frozen)
    for path in frozen:
        assert before[path].tobytes() == after[path].tobytes(), path
    for path in others:
        assert np.any(before[path] != after[path]), path


def test_norms_and_clipping_are_those_of_trained_leaves(five_updates):
    states, metrics, patterns = five_updates
    before, after = leaves(states[0]), leaves(states[1])
    _, trained = split({p for p in before if p.startswith("params/")}, patterns)
    np.testing.assert_allclose(metrics[0]["param_norm"], norm(after[p] for p in trained), rtol=1e-6)
    assert metrics[0]["grad_norm"] > 0.5, "clipping must have an effect"
    # The first step is -lr (clipped gradient + weight decay), measured on parameters near 1.
    clipped = []
    for path in trained:
        decay = 0.0 if path.endswith("/bias") else 0.1
        clipped.append((np.float64(before[path]) - after[path]) / 0.05 - decay * before[path])
    np.testing.assert_allclose(norm(clipped), 0.5, rtol=1e-3)


def test_averages_of_parameters_and_statistics_equal_their_closed_form(five_updates):
    states, _, patterns = five_updates
    decays = [0.9 * (1 - np.exp(-step / 2)) for step in range(1, 6)]
    history = [leaves(s) for s in states]
    average = flat({"params": states[5].ema["params"], **states[5].ema["state"]})
    frozen, others = split(average, patterns)
    for path in others:
        expected = closed_form([values[path] for values in history], decays)
        # Five steps in float32; small biases are differences of larger numbers.
        np.testing.assert_allclose(average[path], expected, rtol=2e-6, atol=1e-7, err_msg=path)
    for path in frozen:
        assert average[path].tobytes() == history[0][path].tobytes(), path


# ------------------------------------------------------------------------------------------------
# Several devices: in a new process, because their number is fixed at its start

FOUR_DEVICES = """
import re

import jax
import numpy as np

from detlab import contract
from detlab import sharding
from detlab import types
from detlab.experiments import common
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import update as update_lib

config = common.base("retinanet")
config.train.accumulate = 2
config.optim.update(lr=1.0, lr_batch_size=0, momentum=0.0, weight_decay=0.0)
config.optim.update(schedule="constant", warmup_steps=0)


def loss(params, state, batch, rng):
    count = batch.valid.sum().astype(np.float32)
    value = (batch.images.mean((1, 2)) @ params["weight"]).sum() / count
    return value, ({"loss/only": value, "normaliser": count}, state)


parts = dict.fromkeys(contract.Detector._fields)
detector = contract.Detector(**parts | dict(loss=loss, frozen=()))
params = {"weight": np.ones(3, np.float32)}
optimizer = optim.build(config.optim, params, 10, batch_size=8, steps_per_unit=1)
mesh = sharding.make_mesh()
everywhere = sharding.replicated(mesh)
state = state_lib.of_weights(params, {}, optimizer, config)
state = jax.device_put(state, everywhere)
rng = np.random.default_rng(0)
host = types.Batch(*[np.zeros(8, np.float32)] * 9)
host = host._replace(
    images=rng.integers(0, 256, (8, 16, 16, 3), np.uint8), valid=rng.random((8, 5)) < 0.5
)
batch = sharding.put_batch(host, mesh)
update = jax.jit(
    update_lib.of(detector, optimizer, config), out_shardings=(everywhere, everywhere)
)
program = update.lower(state, batch).compile()
text = program.as_text()
assert jax.device_count() == 4 and "u8[2,16,16,3]" in text  # two images on every device
assert "all-reduce(" in text  # of gradients
moves = re.findall(r"(?:all-gather|all-to-all|collective-permute)(?:-start)?\\(", text)
assert not moves, moves

new, metrics = program(state, batch)
gradient = host.images.mean((1, 2), dtype=np.float64).sum(0) / host.valid.sum()
np.testing.assert_allclose(1 - new.params["weight"], gradient, rtol=1e-5)
assert metrics["normaliser"] == host.valid.sum()
print("fine")
"""


def test_no_image_moves_between_devices_for_its_part(run_on_devices):
    assert run_on_devices(4, FOUR_DEVICES).endswith("fine\n")

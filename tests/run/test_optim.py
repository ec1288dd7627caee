"""Schedules by hand, updates against NumPy transcriptions and optax, frozen leaves, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from detlab import errors, types
from detlab.run import checkpoint, optim

# float32 rounding of each operation; the references run in float64.
CLOSE = dict(rtol=1e-5, atol=1e-7)


def block(**changes):
    """`config.optim` with neutral values."""
    values = dict(
        name="sgd",
        lr=0.1,
        lr_batch_size=0,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        no_decay=(),
        freeze=(),
        clip_norm=0.0,
        schedule="constant",
        milestones=(),
        milestone_factor=0.1,
        warmup_steps=0,
        warmup_factor=0.001,
        warmup_power=1.0,
        warmup_momentum=0.0,
        warmup_bias_lr=0.0,
        biases=("params/.*/bias",),
        final_factor=0.0,
        decay_from="warmup",
    )
    assert changes.keys() <= values.keys()
    return ConfigDict(values | changes)


def example_params():
    rng = np.random.default_rng(0)

    def values(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "backbone": {"stem": {"kernel": values(3, 2)}},
        "head": {"kernel": values(2, 4), "bias": values(4)},
    }


def example_gradients(steps):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), example_params())
        for _ in range(steps)
    ]


def build(optim_block, frozen=()):
    return optim.build(
        optim_block,
        example_params(),
        total_steps=10,
        batch_size=4,
        steps_per_unit=1,
        frozen=frozen,
    )


def run(transform, gradients):
    """Parameters after each gradient."""
    params = example_params()
    state = transform.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(params)
    return history


def rates(total_steps=100, batch_size=16, steps_per_unit=1, at=(), **changes):
    schedule = optim.learning_rate(block(**changes), total_steps, batch_size, steps_per_unit)
    return [float(schedule(step)) for step in at]


# Schedules


@pytest.mark.parametrize(
    "schedule, expected",
    [
        # Warm-up of 4 steps multiplies by 0.2, 0.4, 0.6, 0.8; then 12 steps to the end.
        ("constant", {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 7: 0.1, 8: 0.1, 12: 0.1, 16: 0.1}),
        # Divided by 10 at 8 and at 12.
        ("step", {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 7: 0.1, 8: 0.01, 11: 0.01, 12: 0.001}),
        # 0.1 + 0.9 (1 + cos x) / 2 of the rate at x = 0, 60, 90, 120, 180 degrees.
        ("cosine", {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 8: 0.0775, 10: 0.055, 12: 0.0325, 16: 0.01}),
        # 1 - 0.9 of the way.
        ("linear", {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 8: 0.07, 10: 0.055, 12: 0.04, 16: 0.01}),
    ],
)
def test_schedules_equal_a_table(schedule, expected):
    found = rates(
        total_steps=16,
        at=expected,
        schedule=schedule,
        milestones=(8, 12),
        warmup_steps=4,
        warmup_factor=0.2,
        final_factor=0.1,
    )
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-5)


def test_steps_divide_the_rate_at_the_start_of_their_epoch():
    found = rates(steps_per_unit=5, at=(0, 9, 10, 14, 15, 99), schedule="step", milestones=(2, 3))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_milestones_are_steps_where_a_unit_is_one_step():
    found = rates(at=(7, 8), schedule="step", milestones=(8,), milestone_factor=0.5)
    np.testing.assert_allclose(found, [0.1, 0.05], rtol=1e-6)


def test_a_step_schedule_without_milestones_is_constant():
    np.testing.assert_allclose(rates(at=(0, 99), schedule="step"), [0.1, 0.1], rtol=1e-6)


def test_cosine_falls_from_the_end_of_warm_up_to_the_final_factor():
    found = rates(
        total_steps=110,
        at=(10, 35, 60, 85, 110, 200),
        schedule="cosine",
        warmup_steps=10,
        final_factor=0.1,
    )
    quarter = 0.5 * (1 + np.cos(np.pi / 4))
    expected = [1.0, 0.1 + 0.9 * quarter, 0.55, 0.1 + 0.9 * (1 - quarter), 0.1, 0.1]
    np.testing.assert_allclose(found, 0.1 * np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("schedule, release", [("cosine", "3.0"), ("linear", "7.0")])
def test_decay_from_the_start_is_yolov5s(schedule, release):
    """Its `lf(x)`, x the completed part of the run, times np.interp from 0 over the warm-up."""
    steps, warmup, low = np.array([0, 3, 10, 55, 110, 200]), 10, 0.2
    found = rates(
        total_steps=110,
        at=steps,
        schedule=schedule,
        warmup_steps=warmup,
        warmup_factor=0.0,
        final_factor=low,
        decay_from="start",
    )
    x = np.minimum(steps / 110, 1)
    lf = {
        "3.0": ((1 + np.cos(x * np.pi)) / 2) * (1 - low) + low,
        "7.0": (1 - x) * (1 - low) + low,
    }[release]
    expected = [np.interp(s, [0, warmup], [0, 0.1 * f]) for s, f in zip(steps, lf)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_warm_up_is_linear_from_its_factor_and_ends_at_its_last_step():
    # lr * (1 - (1 - step / 4) (1 - 0.2)): 0.2, 0.4, 0.6, 0.8 of the rate, then the rate.
    found = rates(at=(0, 1, 2, 3, 4, 5), warmup_steps=4, warmup_factor=0.2)
    np.testing.assert_allclose(found, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1], rtol=1e-5)


def test_a_warm_up_of_the_fourth_power_is_darknets_burn_in():
    found = rates(at=(0, 1, 5, 9, 10), warmup_steps=10, warmup_factor=0.0, warmup_power=4.0)
    np.testing.assert_allclose(found, [0, 0.1e-4, 0.1 / 16, 0.1 * 0.9**4, 0.1], rtol=1e-5)


def test_without_warm_up_the_first_step_has_the_full_rate():
    np.testing.assert_allclose(rates(at=(0,)), [0.1], rtol=1e-6)


def test_warm_up_multiplies_a_rate_that_has_already_been_divided():
    found = rates(at=(1, 2), schedule="step", milestones=(1,), warmup_steps=4, warmup_factor=0.0)
    np.testing.assert_allclose(found, [0.01 * 0.25, 0.01 * 0.5], rtol=1e-5)


@pytest.mark.parametrize("batch_size, expected", [(16, 0.1), (8, 0.05), (32, 0.2)])
def test_rate_is_proportional_to_the_batch(batch_size, expected):
    found = rates(batch_size=batch_size, at=(0,), lr_batch_size=16)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_rate_is_taken_as_it_is_without_a_reference_batch():
    np.testing.assert_allclose(rates(batch_size=3, at=(0,)), [0.1], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear", "constant"])
def test_schedules_are_float32_under_jit(schedule):
    function = optim.learning_rate(
        block(schedule=schedule, milestones=(3,), warmup_steps=2), 10, 4, 1
    )
    traced = jax.jit(function)(jnp.arange(5, dtype=jnp.int32)[3])
    assert traced.dtype == jnp.float32 and traced.shape == ()
    np.testing.assert_allclose(traced, function(3), rtol=1e-6)


# Updates


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_pytorchs(nesterov):
    gradients = example_gradients(3)
    settings = block(schedule="step", milestones=(2,), weight_decay=0.01, nesterov=nesterov)
    ours = run(build(settings).transform, gradients)

    # torch.optim.SGD: decay is added to the gradient, the buffer starts as the first gradient, and
    # the rate is applied last.
    params = jax.tree.map(lambda x: x.astype(np.float64), example_params())
    buffer = None
    for step, (gradient, result) in enumerate(zip(gradients, ours)):
        lr = 0.1 if step < 2 else 0.01
        gradient = jax.tree.map(lambda g, p: g + 0.01 * p, gradient, params)
        if buffer is None:
            buffer = gradient
        else:
            buffer = jax.tree.map(lambda b, g: 0.9 * b + g, buffer, gradient)
        direction = buffer
        if nesterov:
            direction = jax.tree.map(lambda g, b: g + 0.9 * b, gradient, buffer)
        params = jax.tree.map(lambda p, d, lr=lr: p - lr * d, params, direction)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), result, params)


YOLOV5 = dict(
    nesterov=True,
    weight_decay=0.05,
    no_decay=("params/.*/(bias|scale)",),
    schedule="linear",
    decay_from="start",
    final_factor=0.01,
    warmup_steps=8,
    warmup_factor=0.0,
    warmup_momentum=0.8,
    warmup_bias_lr=0.3,
    momentum=0.937,
)


def yolov5_params():
    rng = np.random.default_rng(2)

    def values(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "stem": {"conv": {"kernel": values(3, 2)}, "norm": {"scale": values(2), "bias": values(2)}},
        "head": {"kernel": values(2, 4), "bias": values(4)},
        "fixed": {"kernel": values(2), "bias": values(3)},
    }


def simulate_pytorch(params, gradients, total_steps):
    """torch.optim.SGD with the three groups of YOLOv5's train loop; all rates set at each step."""
    groups = {  # (decay, rate at step 0) of weights, scales of norms, and all biases
        "kernel": (0.05, 0.0),
        "scale": (0.0, 0.0),
        "bias": (0.0, 0.3),
    }
    params = {path: np.float64(x) for path, x in flat(params).items()}
    buffers, history = {}, []
    for step, gradient in enumerate(gradients):
        base = 0.1 * ((1 - step / total_steps) * (1 - 0.01) + 0.01)
        momentum = np.interp(step, [0, 8], [0.8, 0.937])
        for path, g in flat(gradient).items():
            if path.startswith("fixed/"):
                continue
            decay, first = groups[path.split("/")[-1]]
            lr = np.interp(step, [0, 8], [first, base])
            g = g + decay * params[path]
            buffers[path] = momentum * buffers[path] + g if path in buffers else g
            params[path] = params[path] - lr * (g + momentum * buffers[path])
        history.append(dict(params))
    return history


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def yolov5_run():
    """(optimizer, gradients, states and parameters after 0, 1, ... updates, step function)"""
    built = optim.build(block(**YOLOV5), yolov5_params(), 20, 4, 1, frozen=("params/fixed/.*",))
    rng = np.random.default_rng(3)
    gradients = [
        jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), yolov5_params())
        for _ in range(20)
    ]

    @jax.jit
    def step(params, state, gradient):
        updates, state = built.transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    history = [(yolov5_params(), jax.jit(built.transform.init)(yolov5_params()))]
    for gradient in gradients:
        history.append(step(*history[-1], gradient))
    return built, gradients, history, step


def test_three_groups_with_warm_up_equal_pytorchs_sgd(yolov5_run):
    _, gradients, history, _ = yolov5_run
    expected = simulate_pytorch(yolov5_params(), gradients, total_steps=20)
    for (params, _), there in zip(history[1:], expected, strict=True):
        for path, value in flat(params).items():
            # 20 updates in float32, on values up to about 5.
            np.testing.assert_allclose(value, there[path], rtol=1e-5, atol=1e-5, err_msg=path)
    start = flat(yolov5_params())
    for path, value in flat(history[-1][0]).items():
        assert (value == start[path]).all() == path.startswith("fixed/"), path


def test_what_warms_up_is_logged_as_it_is_followed(yolov5_run):
    built, gradients, history, _ = yolov5_run
    assert set(built.warmups) == {"momentum", "lr_biases"}
    steps = [0, 1, 4, 7, 8, 9, 19]
    base = 0.1 * (0.99 * (1 - np.array(steps) / 20) + 0.01)
    momenta = [float(built.warmups["momentum"](step)) for step in steps]
    np.testing.assert_allclose(momenta, np.interp(steps, [0, 8], [0.8, 0.937]), rtol=1e-6)
    biases = [float(built.warmups["lr_biases"](step)) for step in steps]
    expected = [np.interp(s, [0, 8], [0.3, b]) for s, b in zip(steps, base)]
    np.testing.assert_allclose(biases, expected, rtol=1e-5)
    weights = [float(built.schedule(step)) for step in steps]
    expected = [np.interp(s, [0, 8], [0.0, b]) for s, b in zip(steps, base)]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert built.schedule(8) == built.warmups["lr_biases"](8)


def test_a_resumed_run_is_bit_equal_in_the_middle_of_its_warm_up(yolov5_run, tmp_path):
    _, gradients, history, step = yolov5_run
    params, opt_state = history[5]
    saved = types.TrainState(jnp.int32(5), jax.tree.map(jnp.asarray, params), {}, opt_state, None)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(saved, {"config": {}})
    checkpoints.wait()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    restored = checkpoints.restore(shapes)
    checkpoints.close()
    params, opt_state = restored.params, restored.opt_state
    for gradient in gradients[5:]:
        params, opt_state = step(params, opt_state, gradient)
    pairs = zip(jax.tree.leaves((params, opt_state)), jax.tree.leaves(history[-1]), strict=True)
    for a, b in pairs:
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_without_warm_up_of_its_own_nothing_more_is_kept():
    plain = build(block(weight_decay=0.1))
    assert plain.warmups == {}
    assert len(jax.tree.leaves(plain.transform.init(example_params()))) == 3 + 1  # with the step


def test_biases_may_warm_up_with_adamw():
    settings = block(name="adamw", lr=0.01, warmup_steps=4, warmup_factor=0.0, warmup_bias_lr=0.05)
    ones = [jax.tree.map(np.ones_like, example_params())]
    (after,) = run(build(settings).transform, ones)
    before = example_params()
    np.testing.assert_array_equal(after["head"]["kernel"], before["head"]["kernel"])
    np.testing.assert_allclose(before["head"]["bias"] - after["head"]["bias"], 0.05, rtol=1e-4)


def test_adamw_equals_optax():
    settings = block(name="adamw", weight_decay=0.1, no_decay=("params/head/bias",), lr=0.01)
    mask = {"backbone": {"stem": {"kernel": True}}, "head": {"kernel": True, "bias": False}}
    theirs = optax.adamw(0.01, b1=0.9, weight_decay=0.1, mask=mask)
    gradients = example_gradients(3)
    for a, b in zip(run(build(settings).transform, gradients), run(theirs, gradients)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), a, b)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("how", ["model", "config"])
def test_frozen_leaves_are_bit_equal_after_five_steps_and_hold_no_state(name, how):
    settings = block(
        name=name,
        weight_decay=0.1,
        clip_norm=1.0,
        freeze=("params/backbone/.*",) if how == "config" else (),
    )
    frozen = (r"params/backbone/.*", r"batch_stats/backbone/.*") if how == "model" else ()
    built = build(settings, frozen)
    last = run(built.transform, example_gradients(5))[-1]
    before = example_params()
    np.testing.assert_array_equal(
        last["backbone"]["stem"]["kernel"], before["backbone"]["stem"]["kernel"]
    )
    assert np.all(last["head"]["kernel"] != before["head"]["kernel"])
    assert built.labels == {
        "backbone": {"stem": {"kernel": "frozen"}},
        "head": {"kernel": "train", "bias": "train"},
    }
    shapes = {x.shape for x in jax.tree.leaves(built.transform.init(before))}
    assert (2, 4) in shapes and (3, 2) not in shapes


def test_the_clipping_norm_leaves_out_frozen_leaves():
    settings = block(lr=1.0, momentum=0.0, clip_norm=1.0)
    gradient = jax.tree.map(np.zeros_like, example_params())
    gradient["backbone"]["stem"]["kernel"][:] = 100.0
    gradient["head"]["bias"][:] = (0.3, 0.0, 0.0, 0.4)  # norm 0.5: not clipped
    (after,) = run(build(settings, ["params/backbone/.*"]).transform, [gradient])
    moved = example_params()["head"]["bias"] - after["head"]["bias"]
    np.testing.assert_allclose(moved, gradient["head"]["bias"], rtol=1e-5, atol=1e-6)


def test_gradients_above_the_clipping_norm_are_scaled_to_it():
    gradient = jax.tree.map(np.zeros_like, example_params())
    gradient["head"]["bias"][:] = (3.0, 0.0, 0.0, 4.0)
    (after,) = run(build(block(lr=1.0, momentum=0.0, clip_norm=1.0)).transform, [gradient])
    moved = example_params()["head"]["bias"] - after["head"]["bias"]
    np.testing.assert_allclose(moved, [0.6, 0.0, 0.0, 0.8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_leaves_of_no_decay_do_not_shrink(name):
    settings = block(name=name, weight_decay=0.5, no_decay=(".*/bias",))
    zero = jax.tree.map(np.zeros_like, example_params())
    (after,) = run(build(settings, ["params/backbone/.*"]).transform, [zero])
    before = example_params()["head"]
    np.testing.assert_array_equal(after["head"]["bias"], before["bias"])
    np.testing.assert_allclose(after["head"]["kernel"], before["kernel"] * 0.95, **CLOSE)


def test_the_schedule_of_the_result_is_the_one_that_updates_follow():
    built = build(block(momentum=0.0, warmup_steps=4, warmup_factor=0.2))
    ones = [jax.tree.map(np.ones_like, example_params())] * 3
    values = [p["head"]["bias"][0] for p in (example_params(), *run(built.transform, ones))]
    expected = [float(built.schedule(step)) for step in range(3)]
    np.testing.assert_allclose(-np.diff(values), expected, rtol=1e-4)  # differences near 1


# Errors


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(name="lion"), "config.optim.name is 'lion'; it must be sgd or adamw"),
        (
            dict(schedule="poly"),
            "config.optim.schedule is 'poly'; it must be step, cosine, linear or constant",
        ),
        (
            dict(warmup_bias_lr=0.1, warmup_steps=5, biases=("params/.*/offset",)),
            "config.optim.biases: 'params/.*/offset' matches no parameter",
        ),
        (dict(warmup_steps=10), "config.optim.warmup_steps is 10, but the run has 10 steps"),
        (dict(freeze=(".*",)), "config.optim.freeze matches every parameter"),
        (
            dict(no_decay=("params/head/bais",)),
            "config.optim.no_decay: 'params/head/bais' matches no parameter; it must match a whole"
            " path, such as params/backbone/",
        ),
        (
            dict(freeze=("params/backbon/.*",)),
            "config.optim.freeze: 'params/backbon/.*' matches no parameter",
        ),
        (dict(freeze=("backbone/.*",)), "config.optim.freeze: 'backbone/.*' matches no parameter"),
    ],
)
def test_mistakes_are_named_in_a_sentence(changes, sentence):
    with pytest.raises(errors.UserError, match=sentence.replace("*", r"\*")):
        build(block(**changes))


def test_patterns_match_whole_paths_only():
    labels = functools.partial(optim.path_labels, example_params())
    assert set(jax.tree.leaves(labels(["params/head", "head/.*", "backbone"]))) == {"train"}
    assert labels(["params/head/b.*"])["head"] == {"kernel": "train", "bias": "frozen"}


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, np.nan, np.inf])
def test_clipping_equals_optax(value):
    gradients = {
        "trained": jnp.full(5000, 0.01),
        "half": jnp.array([value, 1.0], jnp.bfloat16),
        "frozen": optax.MaskedNode(),
    }
    ours, theirs = (
        clip.update(gradients, clip.init(gradients))[0]
        for clip in (optim.clip_by_norm(1.5), optax.clip_by_global_norm(1.5))
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        tolerance = 1e-2 if a.dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance)


@pytest.mark.parametrize("sizes", [(), (3,), (5000,), (3, 5000, 1, 6000, 4096, 4097)])
def test_the_norm_is_that_of_all_leaves_small_and_large(sizes):
    rng = np.random.default_rng(0)
    tree = {str(i): rng.normal(size=n).astype(np.float32) for i, n in enumerate(sizes)}
    expected = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in tree.values()))
    np.testing.assert_allclose(optim.norm(tree), expected, rtol=1e-6)

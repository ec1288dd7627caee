"""Convolution, the norm modes, and the two combined."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from detlab import layers

MODES = ("batch", "stored", "frozen", "group")
# float32 sums over at most 120 values of order one.
CLOSE = dict(rtol=1e-5, atol=1e-5)
EPSILON = 1e-5
MEAN = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
VAR = np.array([0.25, 4.0, 1.0, 2.0], np.float32)
SCALE = np.array([1.0, 2.0, -0.5, 3.0], np.float32)
BIAS = np.array([0.0, 1.0, 2.0, -1.0], np.float32)


def example(seed=0, shape=(2, 3, 5, 4)):
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


def variables(mode):
    params = {"scale": SCALE, "bias": BIAS}
    if mode == "group":
        return {"params": params}
    return {"params": params, "batch_stats": {"mean": MEAN, "var": VAR}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_norm(mode, train, tree, x):
    return layers.Norm(mode, groups=2).apply(tree, x, train, mutable=["batch_stats"])


def test_conv_pads_both_sides_and_adds_its_bias():
    x = np.ones((1, 4, 4, 1), np.float32)
    params = {"kernel": np.ones((3, 3, 1, 1), np.float32), "bias": np.array([10.0], np.float32)}
    out = layers.Conv(1, 3, 2).apply({"params": params}, x)
    np.testing.assert_array_equal(out[0, :, :, 0], [[14, 16], [16, 19]])


def test_a_kernel_of_one_row_pads_the_columns_alone():
    x = np.float32([[1, 2, 3], [10, 20, 30]]).reshape(1, 2, 3, 1)
    kernel = np.ones((1, 3, 1, 1), np.float32)
    found = layers.Conv(1, (1, 3), use_bias=False).apply({"params": {"kernel": kernel}}, x)
    assert found[0, :, :, 0].tolist() == [[3, 6, 5], [30, 60, 50]]


def test_conv_without_bias_has_only_a_kernel():
    tree = jax.eval_shape(
        layers.Conv(8, 7, use_bias=False).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    )
    assert {k: v.shape for k, v in tree["params"].items()} == {"kernel": (7, 7, 3, 8)}


def test_a_deformable_convolution_without_offsets_is_the_convolution_of_each_level():
    maps = example(shape=(2, 3, 5, 4)), example(shape=(2, 2, 3, 4))
    module = layers.DeformConv(6, deform_groups=2)
    still = tuple(np.zeros((*x.shape[:3], 36), np.float32) for x in maps)
    tree = jax.eval_shape(module.init, jax.random.key(0), maps, still)
    assert {k: v.shape for k, v in tree["params"].items()} == {"kernel": (3, 3, 4, 6)}
    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 6)).astype(np.float32)
    variables = {"params": {"kernel": kernel}}
    found = jax.jit(module.apply)(variables, maps, still)
    for x, y in zip(maps, found, strict=True):
        expected = layers.Conv(6, use_bias=False).apply(variables, x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)


def test_parameter_paths_are_the_same_in_all_norm_modes():
    def paths(mode):
        module = layers.ConvNorm(4, norm=mode, norm_groups=2)
        tree = jax.eval_shape(
            functools.partial(module.init, train=False), jax.random.key(0), jnp.zeros((1, 4, 4, 3))
        )
        flat = traverse_util.flatten_dict(tree, sep="/")
        return {p: x.shape for p, x in flat.items()}

    params = {
        "params/conv/kernel": (3, 3, 3, 4),
        "params/norm/scale": (4,),
        "params/norm/bias": (4,),
    }
    stats = {"batch_stats/norm/mean": (4,), "batch_stats/norm/var": (4,)}
    for mode in ("batch", "stored", "frozen"):
        assert paths(mode) == params | stats
    assert paths("group") == params
    assert paths("none") == {"params/conv/kernel": (3, 3, 3, 4), "params/conv/bias": (4,)}


def test_batch_mode_normalises_with_the_batch_and_updates_by_hand_computed_values():
    # One channel, values 1, 2, 3, 6: mean 3, variance 14 / 4 = 3.5, unbiased 14 / 3.
    x = np.array([1.0, 2.0, 3.0, 6.0], np.float32).reshape(2, 2, 1, 1)
    tree = {
        "params": {"scale": np.array([2.0], np.float32), "bias": np.array([1.0], np.float32)},
        "batch_stats": {"mean": np.array([10.0], np.float32), "var": np.array([20.0], np.float32)},
    }
    out, new = apply_norm("batch", True, tree, x)
    expected = (x - 3.0) / np.sqrt(3.5 + EPSILON) * 2.0 + 1.0
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], [0.9 * 10 + 0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [0.9 * 20 + 0.1 * 14 / 3], rtol=1e-6)


def test_batch_mode_equals_numpy_per_channel():
    x = example()
    out, new = apply_norm("batch", True, variables("batch"), x)
    mean, var = x.mean((0, 1, 2), dtype=np.float64), x.var((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + EPSILON) * SCALE + BIAS, **CLOSE)
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * MEAN + 0.1 * mean, **CLOSE)
    np.testing.assert_allclose(stats["var"], 0.9 * VAR + 0.1 * var * 30 / 29, **CLOSE)


@pytest.mark.parametrize(
    "mode, train", [("batch", False), ("stored", True), ("stored", False), ("frozen", True)]
)
def test_running_statistics_normalise_and_stay_as_they_are(mode, train):
    x = example()
    out, new = apply_norm(mode, train, variables(mode), x)
    np.testing.assert_allclose(
        out, (x - MEAN) / np.sqrt(VAR.astype(np.float64) + EPSILON) * SCALE + BIAS, **CLOSE
    )
    np.testing.assert_array_equal(new["batch_stats"]["mean"], MEAN)
    np.testing.assert_array_equal(new["batch_stats"]["var"], VAR)


def test_initialising_in_training_leaves_neutral_statistics():
    tree = layers.Norm("batch").init(jax.random.key(0), example(), True)
    np.testing.assert_array_equal(tree["batch_stats"]["mean"], np.zeros(4))
    np.testing.assert_array_equal(tree["batch_stats"]["var"], np.ones(4))


@pytest.mark.parametrize("mode", MODES)
def test_only_frozen_scale_and_bias_get_no_gradient(mode):
    tree = variables(mode)
    stats = {k: v for k, v in tree.items() if k != "params"}

    @jax.jit
    def gradients(params, x):
        def loss(params, x):
            module = layers.Norm(mode, groups=2)
            out, _ = module.apply({"params": params, **stats}, x, True, mutable=["batch_stats"])
            return jnp.sin(out).sum()

        return jax.grad(loss, (0, 1))(params, x)

    of_params, of_x = gradients(tree["params"], example())
    for gradient in of_params.values():
        assert np.all(np.asarray(gradient) == 0) == (mode == "frozen")
    assert np.abs(of_x).max() > 0  # the layers below keep learning


def test_batch_mode_gradient_passes_through_the_statistics():
    x, dy = example(), example(1)

    @jax.jit
    def pull_back(x, dy):
        def forward(x):
            tree = variables("batch")
            return layers.Norm("batch").apply(tree, x, True, mutable=["batch_stats"])[0]

        return jax.vjp(forward, x)[1](dy)[0]

    # The published backward pass (arXiv:1502.03167, section 3), in float64.
    wide = x.astype(np.float64)
    std = np.sqrt(wide.var((0, 1, 2)) + EPSILON)
    normal = (wide - wide.mean((0, 1, 2))) / std
    expected = SCALE / std * (dy - dy.mean((0, 1, 2)) - normal * (dy * normal).mean((0, 1, 2)))
    np.testing.assert_allclose(pull_back(x, dy), expected, **CLOSE)


def test_group_norm_equals_numpy():
    x = example(shape=(2, 3, 5, 4))
    out, _ = apply_norm("group", True, variables("group"), x)
    groups = x.astype(np.float64).reshape(2, 15, 2, 2)  # channels 0, 1 and channels 2, 3
    mean = groups.mean((1, 3), keepdims=True)
    var = groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + EPSILON)).reshape(x.shape) * SCALE + BIAS
    np.testing.assert_allclose(out, expected, **CLOSE)
    np.testing.assert_array_equal(out, apply_norm("group", False, variables("group"), x)[0])


def test_group_norm_of_one_image_does_not_depend_on_the_others():
    x = example()
    both, _ = apply_norm("group", True, variables("group"), x)
    alone, _ = apply_norm("group", True, variables("group"), x[:1])
    np.testing.assert_allclose(both[:1], alone, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_low_precision_keeps_float32_parameters_and_statistics(mode):
    module = layers.ConvNorm(4, norm=mode, norm_groups=2, dtype=jnp.bfloat16)
    tree = module.init(jax.random.key(0), jnp.ones((2, 3, 3, 2)), False)
    out, new = module.apply(tree, jnp.ones((2, 3, 3, 2)), True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((tree, new)))


def test_unknown_norm_and_uneven_groups_are_refused_with_their_values():
    x = jnp.zeros((1, 4, 4, 4))
    with pytest.raises(ValueError, match="norm mode 'bacth' is not one of batch, stored, frozen"):
        layers.ConvNorm(4, norm="bacth").init(jax.random.key(0), x, False)
    with pytest.raises(ValueError, match="4 channels cannot be split into 3 groups"):
        layers.ConvNorm(4, norm="group", norm_groups=3).init(jax.random.key(0), x, False)


def test_conv_norm_is_conv_then_norm_then_activation():
    x = example(shape=(1, 4, 4, 4))
    module = layers.ConvNorm(4, 1, norm="stored", activation=jax.nn.relu)
    kernel = np.random.default_rng(2).standard_normal((1, 1, 4, 4)).astype(np.float32)
    tree = {
        "params": {"conv": {"kernel": kernel}, "norm": {"scale": SCALE, "bias": BIAS}},
        "batch_stats": {"norm": {"mean": MEAN, "var": VAR}},
    }
    expected = ((x @ kernel[0, 0]) - MEAN) / np.sqrt(VAR + EPSILON) * SCALE + BIAS
    np.testing.assert_allclose(module.apply(tree, x, True), np.maximum(expected, 0), **CLOSE)


def test_prior_bias_makes_a_sigmoid_predict_the_prior():
    bias = layers.prior_bias(0.01)(jax.random.key(0), (3,), jnp.float32)
    np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.01, rtol=1e-5)


def test_initialisers_have_the_published_spread():
    # Kaiming normal of fan out 9 * 64: std sqrt(2 / 576) = 0.0589; 64 * 576 draws, error 0.4 %.
    kernel = layers.he_normal_out(jax.random.key(0), (3, 3, 64, 64), jnp.float32)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 576), rtol=0.02)
    kernel = layers.normal_001(jax.random.key(0), (3, 3, 64, 64), jnp.float32)
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.02)

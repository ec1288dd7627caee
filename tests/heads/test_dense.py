"""The two towers of dense heads: parameters, sharing between levels, outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import linen as nn
from flax import traverse_util

from detlab import layers
from detlab.heads import dense

FIELDS = dict(
    cls_outputs={"cls_logits": (6, layers.prior_bias(0.01))},
    box_outputs={"box_deltas": (8, nn.initializers.zeros), "centerness": (2, nn.initializers.ones)},
    num_convs=2,
    width=4,
)
# float32 sums of at most 9 * 4 products, in a different order.
CLOSE = dict(rtol=1e-4, atol=1e-5)


def pyramid(sizes=((5, 6), (3, 3), (2, 1)), seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((2, *s, 3)).astype(np.float32) for s in sizes)


def shapes(module, features=None):
    init = functools.partial(module.init, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), features or pyramid())
    return {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()}


@functools.partial(jax.jit, static_argnums=0)  # also within eval_shape
def apply_head(fields, tree, features):
    return dense.TwoTowerHead(**FIELDS, **dict(fields)).apply(tree, features, False)


@functools.cache
def random_params():
    rng = np.random.default_rng(1)
    flat = {
        p: rng.standard_normal(s).astype(np.float32)
        for p, s in shapes(dense.TwoTowerHead(**FIELDS)).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def conv(x, params):
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    kernel = params["kernel"]
    out = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )
    return out + params["bias"]


def test_parameters_are_two_towers_and_one_convolution_for_each_output():
    expected = {}
    for tower in ("cls", "box"):
        expected[f"params/{tower}_conv0/conv/kernel"] = (3, 3, 3, 4)
        expected[f"params/{tower}_conv1/conv/kernel"] = (3, 3, 4, 4)
        expected |= {f"params/{tower}_conv{i}/conv/bias": (4,) for i in range(2)}
    for name, channels in (("cls_logits", 6), ("box_deltas", 8), ("centerness", 2)):
        expected[f"params/{name}/kernel"] = (3, 3, 4, channels)
        expected[f"params/{name}/bias"] = (channels,)
    assert shapes(dense.TwoTowerHead(**FIELDS)) == expected


def test_group_norm_replaces_the_biases_of_the_towers_only():
    found = shapes(dense.TwoTowerHead(**FIELDS, norm="group", norm_groups=2))
    assert found["params/cls_conv1/norm/scale"] == (4,)
    assert not any(p.endswith("conv/bias") for p in found)
    assert found["params/centerness/bias"] == (2,)


def test_parameters_are_shared_by_all_levels():
    whole = apply_head((), random_params(), pyramid())
    for i, x in enumerate(pyramid()):
        alone = apply_head((), random_params(), (x,))
        for name, maps in whole.items():
            np.testing.assert_allclose(maps[i], alone[name][0], **CLOSE)
    assert shapes(dense.TwoTowerHead(**FIELDS), pyramid()[:1]) == shapes(
        dense.TwoTowerHead(**FIELDS)
    )


def test_each_output_reads_its_own_tower():
    params = random_params()["params"]
    maps = apply_head((), random_params(), pyramid())
    assert {name: [m.shape for m in levels] for name, levels in maps.items()} == {
        name: [(2, 5, 6, c), (2, 3, 3, c), (2, 2, 1, c)]
        for name, c in (("cls_logits", 6), ("box_deltas", 8), ("centerness", 2))
    }
    for name, tower in (("cls_logits", "cls"), ("box_deltas", "box"), ("centerness", "box")):
        x = pyramid()[0]
        for i in range(2):
            x = np.maximum(conv(x, params[f"{tower}_conv{i}"]["conv"]), 0)
        np.testing.assert_allclose(maps[name][0], conv(x, params[name]), **CLOSE)


def test_initial_outputs_are_their_biases_up_to_tiny_weights():
    module = dense.TwoTowerHead(**FIELDS)
    init = functools.partial(module.init, train=False)
    tree = tiny.jit(init)(jax.random.key(0), pyramid()[:1])
    maps = apply_head((), tree, pyramid())
    # Weights of std 0.01: three layers leave less than 1e-2 of inputs of order one.
    np.testing.assert_allclose(jax.nn.sigmoid(maps["cls_logits"][0]), 0.01, rtol=1e-2)
    np.testing.assert_allclose(maps["box_deltas"][0], 0.0, atol=1e-2)
    np.testing.assert_allclose(maps["centerness"][0], 1.0, atol=1e-2)
    kernel = tree["params"]["cls_conv1"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.25)  # of 144 draws, error 6 %


def test_outputs_are_float32_whatever_the_computation_dtype():
    maps = jax.eval_shape(
        functools.partial(apply_head, (("dtype", jnp.bfloat16),)), random_params(), pyramid()
    )
    assert all(m.dtype == jnp.float32 for m in jax.tree.leaves(maps))


def test_without_tower_convolutions_the_outputs_read_the_features():
    found = shapes(dense.TwoTowerHead(**{**FIELDS, "num_convs": 0}))
    assert found["params/cls_logits/kernel"] == (3, 3, 3, 6)
    assert not any("conv" in p for p in found)

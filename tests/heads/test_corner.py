"""The heads of corner detectors: pooling directions, sums, parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import linen as nn
from flax import traverse_util

from detlab import layers
from detlab.heads import corner
from detlab.ops import deform_conv

KEY = jax.random.key(0)
OUTPUTS = {"heat": (3, layers.prior_bias(0.1)), "offset": (2, nn.initializers.zeros)}


@functools.partial(tiny.jit, static_argnums=0)
def apply_pooling(directions, tree, x):
    module = corner.CornerPooling(directions, pool_width=x.shape[-1], norm="stored")
    return module.apply(tree, x, False)


def pooled(directions, x, **weights):
    """Pooling whose convolutions pass each cell on, times the weight of their name or 1."""
    module = corner.CornerPooling(directions, pool_width=x.shape[-1], norm="stored")
    shapes = jax.eval_shape(lambda x: module.init(KEY, x, train=False), x)

    def leaf(path, shape):
        if not path.endswith("kernel"):
            return np.full(shape, path.split("/")[-1] in ("scale", "var"), np.float32)
        kernel = np.zeros(shape, np.float32)
        middle = shape[0] // 2
        kernel[middle, middle] = np.eye(*shape[2:]) * weights.get(path.split("/")[1], 1.0)
        return kernel

    flat = traverse_util.flatten_dict(shapes, sep="/")
    tree = traverse_util.unflatten_dict({p: leaf(p, v.shape) for p, v in flat.items()}, sep="/")
    return np.asarray(apply_pooling(directions, tree, x))


def test_a_corner_sees_what_lies_on_the_sides_of_its_box():
    """Top left: the maximum to the right plus the one below; bottom right: left plus above."""
    x = np.random.default_rng(0).uniform(0.1, 1, (1, 5, 7, 2)).astype(np.float32)
    running = np.maximum.accumulate
    below, right = running(x[:, ::-1], 1)[:, ::-1], running(x[:, :, ::-1], 2)[:, :, ::-1]
    above, left = running(x, 1), running(x, 2)
    for directions, expected in (
        (corner.TOP_LEFT, below + right),
        (corner.BOTTOM_RIGHT, above + left),
    ):
        found = pooled(directions, x, shortcut=0.0)
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # norms divide by 1 + 5e-6


def test_the_shortcut_hands_on_what_was_not_pooled():
    x = np.random.default_rng(1).uniform(0.1, 1, (1, 5, 7, 2)).astype(np.float32)
    alone = pooled(corner.TOP_LEFT, x, pooled=0.0)
    np.testing.assert_allclose(alone, x, rtol=1e-4)
    both = pooled(corner.TOP_LEFT, x)
    np.testing.assert_allclose(both, alone + pooled(corner.TOP_LEFT, x, shortcut=0.0), rtol=1e-4)
    assert not pooled(corner.TOP_LEFT, -x).any()  # the ReLUs let nothing through


def test_a_branch_pools_once_and_has_two_convolutions_for_each_map():
    module = corner.CornerBranch(corner.TOP_LEFT, OUTPUTS, pool_width=4, head_width=6)
    x = jnp.zeros((2, 6, 5, 8))
    maps, tree = jax.eval_shape(lambda x: module.init_with_output(KEY, x, train=False), x)
    assert {name: values.shape for name, values in maps.items()} == {
        "heat": (2, 6, 5, 3),
        "offset": (2, 6, 5, 2),
    }
    shapes = {
        path: values.shape
        for path, values in traverse_util.flatten_dict(tree["params"], sep="/").items()
        if "norm" not in path
    }
    assert shapes == {
        "pool/first/conv/kernel": (3, 3, 8, 4),
        "pool/second/conv/kernel": (3, 3, 8, 4),
        "pool/pooled/conv/kernel": (3, 3, 4, 8),
        "pool/shortcut/conv/kernel": (1, 1, 8, 8),
        "pool/out/conv/kernel": (3, 3, 8, 8),
        "heat_conv/conv/kernel": (3, 3, 8, 6),
        "heat_conv/conv/bias": (6,),
        "heat/kernel": (1, 1, 6, 3),
        "heat/bias": (3,),
        "offset_conv/conv/kernel": (3, 3, 8, 6),
        "offset_conv/conv/bias": (6,),
        "offset/kernel": (1, 1, 6, 2),
        "offset/bias": (2,),
    }


def centripetal(seed=0):
    """(a branch, its random params and statistics, features)."""
    module = corner.CentripetalBranch(corner.TOP_LEFT, OUTPUTS, 4, 6, "stored")
    rng = np.random.default_rng(seed)
    x = np.float32(rng.normal(size=(2, 6, 5, 8)))
    tree = jax.eval_shape(lambda x: module.init(KEY, x, train=False), x)
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.3, x.shape)), tree["params"])
    stats = jax.tree.map(lambda x: np.float32(rng.uniform(0.5, 2, x.shape)), tree["batch_stats"])
    return module, {"params": params, "batch_stats": stats}, x


def test_the_centripetal_shift_is_read_where_the_guiding_shift_points():
    module, tree, x = centripetal()
    maps, sown = tiny.jit(
        lambda tree, x: module.apply(
            tree, x, False, capture_intermediates=True, mutable="intermediates"
        )
    )(tree, x)
    inner = sown["intermediates"]
    places = maps["guiding"] @ tree["params"]["places"]["kernel"][0, 0]  # [B, H, W, 9 * 2]
    pooled = inner["pool"]["__call__"][0]
    kernel = tree["params"]["deform"]["kernel"]
    for i in range(2):
        expected = deform_conv.deform_conv(pooled[i], places[i], kernel)
        found = inner["deform"]["__call__"][0][0][i]
        assert np.ptp(expected) > 0.1 and 0.1 < np.abs(places[i]).max()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert maps["guiding"].shape == maps["centripetal"].shape == (2, 6, 5, 2)
    assert tree["params"]["places"].keys() == tree["params"]["deform"].keys() == {"kernel"}


def test_the_guiding_shift_learns_nothing_from_the_centripetal_one():
    module, tree, x = centripetal()

    @tiny.jit
    @jax.grad
    def gradient(params):
        maps = module.apply({**tree, "params": params}, x, False)
        return maps["centripetal"].sum()

    found = gradient(tree["params"])
    for name in ("guiding", "guiding_conv"):
        assert not any(map(np.any, jax.tree.leaves(found[name])))
    read = found["places"], found["deform"], found["pool"]["first"]["conv"]
    assert all(part["kernel"].any() for part in read)

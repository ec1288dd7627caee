"""Stacked hourglasses: sizes, sums, connections between stacks, rematerialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab.backbones import hourglass, resnet

SMALL = dict(channels=(4, 4, 6), blocks=(1, 1, 2))
KEY = jax.random.key(0)


def shapes(module, x):
    return jax.eval_shape(functools.partial(module.init, train=False), KEY, x)


def parameters(module):
    tree = shapes(module, jnp.zeros((1, 64, 64, 3)))["params"]
    return {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()}


def random_tree(module, x):
    rng = np.random.default_rng(0)

    def values(leaf):
        low, high = (-0.1, 0.15) if len(leaf.shape) == 4 else (0.5, 1.5)  # kernels; norms
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree.map(values, shapes(module, x))


def test_hourglass_104_has_the_parameters_of_the_reference():
    shapes = parameters(hourglass.HourglassNet())
    # Weights and biases below `backbone` of mmdetection's cornernet_hourglass104.
    assert sum(path.endswith("kernel") for path in shapes) == 160
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 187_700_352


@pytest.mark.parametrize("size", [(64, 96), (65, 93), (511, 511)])
def test_every_stack_gives_maps_of_stride_4_also_where_sizes_are_odd(size):
    module = hourglass.HourglassNet(stacks=3, **SMALL)
    forward = functools.partial(module.init_with_output, train=False)
    features, _ = jax.eval_shape(forward, KEY, jnp.zeros((2, *size, 3)))
    cells = tuple(-(-side // 4) for side in size)
    assert [x.shape for x in features] == [(2, *cells, 4)] * 3


def sub(tree, name):
    return {kind: values[name] for kind, values in tree.items()}


def test_an_hourglass_adds_what_it_sees_small_to_what_it_keeps():
    """Block by block, on a map whose sizes are odd after the second halving."""
    module = hourglass.Hourglass(**SMALL)
    x = np.random.default_rng(0).standard_normal((1, 6, 10, 4)).astype(np.float32)

    def expected(tree, x, channels):
        def residual(name, width, x, stride=1):
            block = resnet.BasicBlock(width, stride, "pytorch", "batch")
            return block.apply(sub(tree, name), x, False)

        width, below = channels[:2]
        small = residual("down0", below, x, stride=2)
        if len(channels) > 2:
            small = expected(sub(tree, "inner"), small, channels[1:])
        else:
            small = residual("inner1", below, residual("inner0", below, small))
        small = residual("up0", width, small)
        enlarged = jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2)
        return residual("skip0", width, x) + enlarged[:, : x.shape[1], : x.shape[2]]

    def both(tree, x):
        return module.apply(tree, x, False), expected(tree, x, SMALL["channels"])

    found, by_hand = tiny.jit(both)(random_tree(module, x), x)
    assert found.shape == x.shape and np.ptp(found) > 0.1
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5 * np.abs(by_hand).max())


def test_a_stack_goes_on_from_the_one_before():
    module = hourglass.HourglassNet(channels=(4, 4), blocks=(1, 1))
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
    tree = random_tree(module, x)
    forward = tiny.jit(lambda tree: module.apply(tree, x, False))
    before = forward(tree)

    def changes(name):
        """Whether each stack's maps change with the parameters of one part."""
        params = {**tree["params"], name: jax.tree.map(lambda v: v + 0.3, tree["params"][name])}
        after = forward({**tree, "params": params})
        return tuple(bool(np.any(a != b)) for a, b in zip(before, after))

    assert set(tree["params"]) == {
        *("stem", "stem_block", "hourglass0", "out0"),
        *("keep0", "remap0", "join0", "hourglass1", "out1"),
    }
    for name in ("stem", "stem_block", "hourglass0", "out0"):
        assert changes(name) == (True, True), name
    for name in ("keep0", "remap0", "join0", "hourglass1", "out1"):
        assert changes(name) == (False, True), name


def test_rematerialisation_keeps_the_paths_and_little_else_than_the_input_of_each_block():
    def bytes_of(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    def kept(module):
        """Bytes that the forward pass stores for the backward pass, besides the tree itself."""
        x = jnp.zeros((2, 16, 16, 8))
        tree = shapes(module, x)

        def backward(tree):
            def loss(params):
                return module.apply({**tree, "params": params}, x, True, mutable=True)[0].sum()

            return jax.vjp(loss, tree["params"])[1]

        return bytes_of(jax.eval_shape(backward, tree)) - bytes_of(tree)

    module = functools.partial(hourglass.Hourglass, channels=(8, 8, 8), blocks=(1, 1, 1))
    again, once = module(remat=True), module(remat=False)
    x = jnp.zeros((1, 16, 16, 8))
    assert jax.tree.structure(shapes(again, x)) == jax.tree.structure(shapes(once, x))
    assert kept(again) < 0.3 * kept(once)

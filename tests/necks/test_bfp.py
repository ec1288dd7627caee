"""Balanced feature pyramid: resizing, the average, and its refinement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.necks import bfp

WIDTH = 3
SIZES = ((13, 17), (7, 9), (4, 5), (2, 3), (1, 2))  # of P3..P7 for 99 x 135 px


def features(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((2, *size, WIDTH)).astype(np.float32) for size in SIZES]


@functools.cache
def run(refine_level):
    """(params, outputs) with random weights."""
    module, maps = bfp.BFP(refine_level), features()
    tree = jax.eval_shape(module.init, jax.random.key(0), maps)
    rng = np.random.default_rng(1)
    tree = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), tree)
    return tree["params"]["refine"], tiny.jit(module.apply)(tree, maps)


def largest(x, size):
    """Adaptive maxima of [B, H, W, D], cell by cell."""
    out = np.zeros((len(x), *size, x.shape[3]))
    for i, j in np.ndindex(size):
        rows, columns = (
            slice(k * big // small, -(-(k + 1) * big // small))
            for k, big, small in zip((i, j), x.shape[1:3], size)
        )
        out[:, i, j] = x[:, rows, columns].max((1, 2))
    return out


def nearest(x, size):
    rows, columns = (
        [k * small // big for k in range(big)] for small, big in zip(x.shape[1:3], size)
    )
    return x[:, rows][:, :, columns]


def refined(x, params):
    """The non-local block on [H, W, D] in float64."""
    cells = x.reshape(-1, WIDTH).astype(np.float64)
    g, theta, phi = (
        cells @ params[name]["kernel"][0, 0] + params[name]["bias"]
        for name in ("g", "theta", "phi")
    )
    weights = np.exp(theta @ phi.T)
    mean = weights @ g / weights.sum(1, keepdims=True)
    change = mean @ params["output"]["kernel"][0, 0] + params["output"]["bias"]
    return x + change.reshape(x.shape)


@pytest.mark.parametrize("level", [1, 2])  # of Libra RetinaNet, of Libra R-CNN
def test_every_level_gets_the_refined_average(level):
    params, outputs = run(level)
    maps, size = features(), SIZES[level]
    gathered = [
        (largest if i < level else nearest)(x.astype(np.float64), size) for i, x in enumerate(maps)
    ]
    balanced = np.stack([refined(x, params) for x in np.mean(gathered, 0)])
    for i, (x, found) in enumerate(zip(maps, outputs, strict=True)):
        back = (nearest if i < level else largest)(balanced, SIZES[i])
        # float32 against float64: a softmax of similarities up to 20.
        np.testing.assert_allclose(found, x + back, rtol=1e-4, atol=1e-4)


def test_a_new_block_adds_the_plain_average():
    maps, module = features(), bfp.BFP(1)
    outputs, tree = tiny.jit(module.init_with_output)(jax.random.key(0), maps)
    assert not np.any(tree["params"]["refine"]["output"]["kernel"])
    gathered = [(largest if i < 1 else nearest)(x, SIZES[1]) for i, x in enumerate(maps)]
    np.testing.assert_allclose(outputs[1], maps[1] + np.mean(gathered, 0), rtol=1e-5, atol=1e-5)


def test_levels_may_be_one_cell_high():
    maps = [jnp.ones((1, *size, WIDTH)) for size in ((1, 5), (1, 3), (1, 2), (1, 1))]
    for level in range(4):
        outputs, _ = jax.eval_shape(bfp.BFP(level).init_with_output, jax.random.key(0), maps)
        assert [x.shape for x in outputs] == [x.shape for x in maps]


def test_outputs_have_the_computation_dtype():
    module, maps = bfp.BFP(dtype=jnp.bfloat16), [jnp.bfloat16(x) for x in features()]
    outputs, tree = jax.eval_shape(module.init_with_output, jax.random.key(0), maps)
    assert {x.dtype for x in outputs} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}

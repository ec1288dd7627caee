"""Darknet-53: published size, strides, paths and the order of additions and activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from detlab.backbones import darknet53

TINY = dict(width=4, blocks=(1, 1, 1, 1, 1))


def flat_shapes(module, size=(64, 64)):
    init = functools.partial(module.init, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    return {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()}


def test_size_is_that_of_the_published_network_without_its_classifier():
    shapes = flat_shapes(darknet53.Darknet())
    kernels = {p: s for p, s in shapes.items() if p.endswith("conv/kernel")}
    assert len(kernels) == 52  # table 1: 53 layers with the classifier
    # darknet53.conv.74, the file that darknet starts from: its floats after the 20-byte header.
    assert sum(int(np.prod(s)) for s in shapes.values()) == 40_620_640


def test_paths_and_shapes_of_a_stage():
    shapes = flat_shapes(darknet53.Darknet())
    assert shapes["params/stem/conv/kernel"] == (3, 3, 3, 32)
    assert shapes["params/stage2_down/conv/kernel"] == (3, 3, 64, 128)
    assert shapes["params/stage2_block1/conv1/conv/kernel"] == (1, 1, 128, 64)
    assert shapes["params/stage2_block1/conv2/conv/kernel"] == (3, 3, 64, 128)
    assert shapes["batch_stats/stage5_block3/conv2/norm/var"] == (1024,)
    blocks = {p.split("/")[1] for p in shapes if "_block" in p}
    assert tuple(sum(b.startswith(f"stage{i}_") for b in blocks) for i in range(1, 6)) == (
        *(1, 2, 8, 8, 4),
    )


@pytest.mark.parametrize("size", [(64, 96), (65, 99)])
def test_maps_have_strides_8_16_32_rounded_up(size):
    init = functools.partial(darknet53.Darknet().init_with_output, train=False)
    features, _ = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, *size, 3)))
    assert [f.shape for f in features] == [
        (2, -(-size[0] // stride), -(-size[1] // stride), channels)
        for stride, channels in ((8, 256), (16, 512), (32, 1024))
    ]


def test_a_block_adds_its_input_after_the_last_activation():
    block = darknet53.Residual(norm="stored")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)
    init = functools.partial(block.init, train=False)
    tree = jax.tree.map(
        lambda v: rng.uniform(0.5, 1.5, v.shape).astype(np.float32) - (v.ndim == 4),
        jax.eval_shape(init, jax.random.key(0), x),
    )

    def after(values, name):
        p, s = tree["params"][name]["norm"], tree["batch_stats"][name]["norm"]
        values = (values - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
        return np.where(values > 0, values, 0.1 * values)

    kernels = {name: tree["params"][name]["conv"]["kernel"] for name in ("conv1", "conv2")}
    y = np.pad(after(x @ kernels["conv1"][0, 0], "conv1"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(y[:, i : i + 3, j : j + 4] @ kernels["conv2"][i, j] for i in range(3) for j in range(3))
    expected = x + after(y, "conv2")
    assert expected.min() < 0
    np.testing.assert_allclose(block.apply(tree, x, False), expected, rtol=1e-5, atol=1e-5)


def test_outputs_have_the_computation_dtype():
    module = darknet53.Darknet(**TINY, dtype=jnp.bfloat16)
    init = functools.partial(module.init_with_output, train=False)
    features, tree = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert {f.dtype for f in features} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}

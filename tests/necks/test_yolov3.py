"""YOLOv3's neck: paths, sizes, and the inputs of each level."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab import layers
from detlab.necks import yolov3


def maps(sizes, channels=(6, 8, 10), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((2, *s, c)).astype(np.float32) for s, c in zip(sizes, channels)]


EVEN = ((8, 12), (4, 6), (2, 3))
ODD = ((9, 13), (5, 7), (3, 4))


@pytest.mark.parametrize("sizes", [EVEN, ODD])
def test_coarser_levels_keep_their_cells_and_have_twice_the_channels(sizes):
    init = functools.partial(yolov3.YOLONeck(4).init_with_output, train=False)
    outputs, _ = jax.eval_shape(init, jax.random.key(0), maps(sizes))
    assert [p.shape for p in outputs] == [(2, *s, c) for s, c in zip(sizes, (4, 8, 16))]


def test_paths_and_shapes_are_those_of_the_published_neck():
    features = [jnp.zeros((1, s, s, c)) for s, c in ((8, 256), (4, 512), (2, 1024))]
    init = functools.partial(yolov3.YOLONeck().init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), features)["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    kernels = {p: x.shape for p, x in flat.items() if p.endswith("kernel")}
    expected = {
        "reduce5/conv/kernel": (1, 1, 512, 256),
        "reduce4/conv/kernel": (1, 1, 256, 128),
    }
    # After the concatenation: the map from above, then the backbone's map.
    for level, width, channels in ((5, 512, 1024), (4, 256, 256 + 512), (3, 128, 128 + 256)):
        for i in range(1, 6):
            channels = channels if i == 1 else 2 * width if i % 2 else width
            shape = (1, 1, channels, width) if i % 2 else (3, 3, channels, 2 * width)
            expected[f"block{level}/conv{i}/conv/kernel"] = shape
    assert kernels == expected


@pytest.mark.parametrize("sizes", [EVEN, ODD])
def test_each_level_sees_its_own_map_and_the_level_above(sizes):
    """The same modules, put together by hand from the neck's own parameters."""
    neck = yolov3.YOLONeck(4, norm="none")
    features = maps(sizes)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(functools.partial(neck.init, train=False), jax.random.key(0), features)
    tree = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32) / 4, shapes)
    params = tree["params"]

    @tiny.jit
    def both(params, features):
        def block(level, x):
            module = yolov3.DetectionBlock(4 * 2 ** (level - 3), norm="none")
            return module.apply({"params": params[f"block{level}"]}, x, False)

        def reduced(level, x):
            conv = params[f"reduce{level}"]["conv"]
            return layers.leaky_relu(x @ conv["kernel"][0, 0] + conv["bias"])

        c3, c4, c5 = features
        p5 = block(5, c5)
        above = layers.upsample(reduced(5, p5), c4.shape[1:3])
        p4 = block(4, jnp.concatenate([above, c4], axis=-1))
        above = layers.upsample(reduced(4, p4), c3.shape[1:3])
        p3 = block(3, jnp.concatenate([above, c3], axis=-1))
        return neck.apply({"params": params}, features, False), (p3, p4, p5)

    for ours, expected in zip(*both(params, features), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(ours).max() > 0.1

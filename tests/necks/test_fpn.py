"""FPN: the four kinds of extra levels, upsampling, and the inputs of each level."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab import layers
from detlab.necks import fpn

WIDTH = 4
CHANNELS = (3, 5, 6, 7)  # of C2..C5, all different
# Odd at every level, as for images of 99 x 135 px.
SIZES = ((25, 34), (13, 17), (7, 9), (4, 5))
# The necks of the papers by name: fields, levels with parameters, input width of each extra.
NECKS = {
    "FPN-in": (dict(), (3, 4, 5), {6: CHANNELS[3], 7: WIDTH}),
    "FPN-out": (dict(extra="output"), (3, 4, 5), {6: WIDTH, 7: WIDTH}),
    "FPN-out-relu": (dict(extra="output_relu"), (3, 4, 5), {6: WIDTH, 7: WIDTH}),
    "FPN-rcnn": (dict(extra="pool", start_level=2), (2, 3, 4, 5), {}),
}
# float32 sums of at most 9 * 7 products of order one, in a different order.
CLOSE = dict(rtol=1e-4, atol=1e-4)


def backbone_maps(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((2, *size, channels)).astype(np.float32)
        for size, channels in zip(sizes, CHANNELS)
    ]


@functools.cache
def run(name, norm="none"):
    """(params, outputs) of a neck with random weights and biases."""
    module = fpn.FPN(WIDTH, norm=norm, norm_groups=2, **NECKS[name][0])
    maps = backbone_maps()
    tree = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), maps)
    rng = np.random.default_rng(1)
    tree = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), tree)
    outputs = tiny.jit(functools.partial(module.apply, train=False))(tree, maps)
    return tree["params"], [np.asarray(p) for p in outputs]


def conv(x, params, stride=1):
    """Zero-padded convolution with bias, in float64."""
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    k = kernel.shape[0]
    pad = (k - 1) // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((n - k) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(k):
        for j in range(k):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            columns = slice(j, j + stride * (width - 1) + 1, stride)
            out += x[:, rows, columns] @ kernel[i, j]
    return out + bias


def nearest(x, size):
    """Cell (i, j) copies cell (floor(i h / H), floor(j w / W))."""
    out = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            out[:, i, j] = x[:, i * x.shape[1] // size[0], j * x.shape[2] // size[1]]
    return out


@pytest.mark.parametrize("name", NECKS)
def test_each_neck_has_exactly_its_parameters(name):
    _, levels, extra = NECKS[name]
    expected = {}
    for level in levels:
        expected[f"lateral{level}/conv/kernel"] = (1, 1, CHANNELS[level - 2], WIDTH)
        expected[f"output{level}/conv/kernel"] = (3, 3, WIDTH, WIDTH)
    for level, channels in extra.items():
        expected[f"output{level}/conv/kernel"] = (3, 3, channels, WIDTH)
    expected |= {p.replace("kernel", "bias"): (WIDTH,) for p in expected}
    flat = traverse_util.flatten_dict(run(name)[0], sep="/")
    assert {p: x.shape for p, x in flat.items()} == expected


@pytest.mark.parametrize("name", NECKS)
def test_five_levels_halve_their_size_rounded_up(name):
    sizes = {2: (25, 34), 3: (13, 17), 4: (7, 9), 5: (4, 5), 6: (2, 3), 7: (1, 2)}
    first = NECKS[name][1][0]
    assert [p.shape for p in run(name)[1]] == [
        (2, *sizes[level], WIDTH) for level in range(first, first + 5)
    ]


@pytest.mark.parametrize("name", NECKS)
def test_levels_with_a_backbone_map_equal_their_definition(name):
    params, outputs = run(name)
    maps = dict(zip((2, 3, 4, 5), backbone_maps()))
    first = NECKS[name][1][0]
    above = None
    for level in range(5, first - 1, -1):
        merged = conv(maps[level], params[f"lateral{level}"])
        if above is not None:
            merged += nearest(above, merged.shape[1:3])
        above = merged
        expected = conv(merged, params[f"output{level}"])
        np.testing.assert_allclose(outputs[level - first], expected, **CLOSE)


@pytest.mark.parametrize(
    "name, source", [("FPN-in", "C5"), ("FPN-out", "P5"), ("FPN-out-relu", "P5")]
)
def test_p6_and_p7_are_strided_convolutions_of_their_source(name, source):
    params, (_, _, p5, p6, p7) = run(name)
    top = backbone_maps()[3] if source == "C5" else p5
    np.testing.assert_allclose(p6, conv(top, params["output6"], 2), **CLOSE)
    assert p6.min() < 0 < p6.max()  # so that a relu would show
    below = np.maximum(p6, 0) if name == "FPN-out-relu" else p6
    np.testing.assert_allclose(p7, conv(below, params["output7"], 2), **CLOSE)


def test_pooled_p6_is_every_second_cell_of_p5():
    *_, p5, p6 = run("FPN-rcnn")[1]
    np.testing.assert_array_equal(p6, p5[:, ::2, ::2])


def test_group_norm_follows_every_convolution_and_replaces_its_bias():
    params, outputs = run("FPN-in", "group")
    for name, part in params.items():
        assert set(part) == {"conv", "norm"} and set(part["conv"]) == {"kernel"}, name
    assert len(params) == 8
    # Each group of an image's map has the mean and spread of scale and bias alone.
    norm = params["output6"]["norm"]
    groups = ((outputs[3] - norm["bias"]) / norm["scale"]).reshape(2, -1, 2, 2)
    np.testing.assert_allclose(groups.mean((1, 3)), 0.0, atol=1e-4)
    np.testing.assert_allclose(groups.std((1, 3)), 1.0, rtol=1e-3)  # epsilon 1e-5 of a variance


@pytest.mark.parametrize("size", [(3, 5), (4, 7), (5, 6), (6, 10), (2, 3)])
def test_upsampling_repeats_the_nearest_cell_at_even_and_odd_sizes(size):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(layers.upsample(x, size), nearest(x, size).astype(np.float32))


def test_upsampling_5_cells_to_9_shows_the_same_cells_as_the_reference():
    # torch.nn.functional.interpolate(mode="nearest", size=9) of arange(5).
    x = np.arange(5.0).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(layers.upsample(x, (1, 9)).ravel(), [0, 0, 1, 1, 2, 2, 3, 3, 4])


@pytest.mark.parametrize("num_levels", [1, 3, 4])
def test_fewer_levels_are_the_finest_of_the_same_pyramid(num_levels):
    params, outputs = run("FPN-in")
    module = fpn.FPN(WIDTH, num_levels=num_levels)
    few = tiny.jit(functools.partial(module.apply, train=False))(
        {"params": params}, backbone_maps()
    )
    assert len(few) == num_levels
    for a, b in zip(few, outputs):
        np.testing.assert_allclose(a, b, **CLOSE)


def test_unknown_extra_is_refused_with_its_value():
    with pytest.raises(ValueError, match="FPN extra 'p5' is not one of input, output, output_relu"):
        fpn.FPN(WIDTH, extra="p5").init(jax.random.key(0), backbone_maps(), False)


def test_outputs_have_the_computation_dtype():
    module = fpn.FPN(WIDTH, dtype=jnp.bfloat16)
    init = functools.partial(module.init_with_output, train=False)
    outputs, tree = jax.eval_shape(init, jax.random.key(0), backbone_maps())
    assert {p.dtype for p in outputs} == {jnp.dtype("bfloat16")}
    assert {p.dtype for p in jax.tree.leaves(tree)} == {jnp.dtype("float32")}

"""ResNet: published sizes, strides, styles, norm modes and frozen stages."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab.backbones import resnet

TINY = dict(width=4, stages=(1, 1, 1, 1))
# torchvision's models without `fc`; norm scales and biases count.
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}
CHANNELS = {18: (64, 128, 256, 512), 50: (256, 512, 1024, 2048)}


@functools.cache
def flat_shapes(module, size=(64, 64)):
    init = functools.partial(module.init, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    return {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()}


def random_tree(module, seed=0):
    """Random values, unlike the initial ones such as norm scales of 1."""
    rng = np.random.default_rng(seed)
    shapes = flat_shapes(module)

    def value(path, shape):
        if path.endswith("kernel"):
            return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:3]))
        return rng.uniform(0.5, 1.5, shape)

    flat = {p: value(p, s).astype(np.float32) for p, s in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def images(size=(32, 32), seed=0):
    return np.random.default_rng(seed).standard_normal((2, *size, 3)).astype(np.float32)


@functools.partial(tiny.jit, static_argnums=(0, 3))
def apply_train(module, tree, x, train):
    features, new = module.apply(tree, x, train, mutable=["batch_stats"])
    return features, new


@pytest.mark.parametrize("depth", sorted(PARAMETERS))
def test_parameter_count_equals_torchvisions_backbone(depth):
    shapes = flat_shapes(resnet.ResNet(depth))
    counts = {"params": 0, "batch_stats": 0}
    for path, shape in shapes.items():
        counts[path.split("/")[0]] += int(np.prod(shape))
    assert counts["params"] == PARAMETERS[depth]
    norms = sum(int(np.prod(s)) for p, s in shapes.items() if "/norm/" in p)
    assert counts["batch_stats"] == norms // 2  # a mean and a variance for each scale and bias


def test_paths_and_shapes_of_a_basic_block_stage():
    shapes = flat_shapes(resnet.ResNet(18))
    kernels = {
        p.removeprefix("params/").removesuffix("/conv/kernel"): s
        for p, s in shapes.items()
        if p.endswith("kernel")
    }
    assert kernels == {
        "stem": (7, 7, 3, 64),
        "stage1_block0/conv1": (3, 3, 64, 64),
        "stage1_block0/conv2": (3, 3, 64, 64),
        "stage1_block1/conv1": (3, 3, 64, 64),
        "stage1_block1/conv2": (3, 3, 64, 64),
        "stage2_block0/conv1": (3, 3, 64, 128),
        "stage2_block0/conv2": (3, 3, 128, 128),
        "stage2_block0/shortcut": (1, 1, 64, 128),
        "stage2_block1/conv1": (3, 3, 128, 128),
        "stage2_block1/conv2": (3, 3, 128, 128),
        "stage3_block0/conv1": (3, 3, 128, 256),
        "stage3_block0/conv2": (3, 3, 256, 256),
        "stage3_block0/shortcut": (1, 1, 128, 256),
        "stage3_block1/conv1": (3, 3, 256, 256),
        "stage3_block1/conv2": (3, 3, 256, 256),
        "stage4_block0/conv1": (3, 3, 256, 512),
        "stage4_block0/conv2": (3, 3, 512, 512),
        "stage4_block0/shortcut": (1, 1, 256, 512),
        "stage4_block1/conv1": (3, 3, 512, 512),
        "stage4_block1/conv2": (3, 3, 512, 512),
    }
    assert not any(p.endswith("conv/bias") for p in shapes)


@pytest.mark.parametrize("depth", sorted(PARAMETERS))
def test_blocks_of_each_stage_are_those_of_table_1(depth):
    blocks = {p.split("/")[1] for p in flat_shapes(resnet.ResNet(depth)) if "/stage" in p}
    counted = tuple(sum(b.startswith(f"stage{i}_") for b in blocks) for i in (1, 2, 3, 4))
    assert counted == resnet.STAGES[depth]


def test_paths_and_shapes_of_bottlenecks():
    shapes = flat_shapes(resnet.ResNet(50))
    assert shapes["params/stage1_block0/shortcut/conv/kernel"] == (1, 1, 64, 256)
    assert shapes["params/stage4_block0/conv1/conv/kernel"] == (1, 1, 1024, 512)
    assert shapes["params/stage4_block0/conv2/conv/kernel"] == (3, 3, 512, 512)
    assert shapes["params/stage4_block0/conv3/conv/kernel"] == (1, 1, 512, 2048)
    assert shapes["batch_stats/stage4_block0/conv3/norm/var"] == (2048,)
    assert sorted({p.split("/")[1] for p in shapes if "shortcut" in p}) == [
        f"stage{i}_block0" for i in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("size", [(64, 96), (65, 99)])
def test_maps_have_strides_4_to_32_rounded_up(depth, style, size):
    module = resnet.ResNet(depth, style=style, stages=(2, 2, 2, 2))  # a first block and another
    x = jnp.zeros((2, *size, 3))
    (features, _) = jax.eval_shape(
        functools.partial(module.init_with_output, train=False), jax.random.key(0), x
    )
    expected = [
        (2, -(-size[0] // stride), -(-size[1] // stride), channels)
        for stride, channels in zip((4, 8, 16, 32), CHANNELS[depth])
    ]
    assert [f.shape for f in features] == expected


def test_styles_share_their_parameters_and_differ_where_the_stride_is():
    pytorch = resnet.ResNet(50, "pytorch", width=4, stages=(1, 1, 1))
    caffe = resnet.ResNet(50, "caffe", width=4, stages=(1, 1, 1))
    assert flat_shapes(pytorch) == flat_shapes(caffe)
    tree = random_tree(pytorch)
    ours, _ = apply_train(pytorch, tree, images(), False)
    theirs, _ = apply_train(caffe, tree, images(), False)
    assert [f.shape for f in ours] == [f.shape for f in theirs]
    np.testing.assert_array_equal(ours[0], theirs[0])  # no stride before C3
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(ours[1:], theirs[1:]))


def test_a_strided_bottleneck_equals_its_definition():
    block = resnet.Bottleneck(2, 2, "caffe", "stored")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 4, 8)).astype(np.float32)
    tree = jax.tree.map(
        lambda v: rng.uniform(0.5, 1.5, v.shape).astype(np.float32),
        jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), x),
    )

    def norm(values, name):
        p, s = tree["params"][name]["norm"], tree["batch_stats"][name]["norm"]
        return (values - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def conv1x1(values, name):
        return norm(values @ tree["params"][name]["conv"]["kernel"][0, 0], name)

    y = np.maximum(conv1x1(x[:, ::2, ::2], "conv1"), 0)  # caffe: the stride is on the first 1x1
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = tree["params"]["conv2"]["conv"]["kernel"]
    y = sum(padded[:, i : i + 2, j : j + 2] @ kernel[i, j] for i in range(3) for j in range(3))
    y = conv1x1(np.maximum(norm(y, "conv2"), 0), "conv3")
    expected = np.maximum(y + conv1x1(x[:, ::2, ::2], "shortcut"), 0)
    np.testing.assert_allclose(block.apply(tree, x, False), expected, rtol=1e-5, atol=1e-4)


def test_norms_start_at_one_and_convolutions_with_he_variance():
    """As in torchvision and mmdetection: normal, variance 2 / (k * k * output channels)."""
    module = resnet.ResNet(18, stages=(1, 1, 1, 1))
    tree = tiny.jit(lambda x: module.init(jax.random.key(0), x, False))(images())
    flat = traverse_util.flatten_dict(tree["params"], sep="/")
    for path, value in flat.items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(value, 1)
        elif path.endswith("kernel") and value.size > 10_000:
            variance = 2 / (value.shape[0] * value.shape[1] * value.shape[3])
            assert np.var(value) == pytest.approx(variance, rel=0.1), path


FROZEN_CASES = [
    (18, "stored", 0),
    (18, "stored", 1),
    (18, "batch", 2),
    (50, "frozen", 1),
    (18, "group", 1),
]


@functools.cache
def train_gradients(depth, norm, frozen_stages):
    """(tree, gradients of params, new batch_stats) of one training pass, flat paths."""
    width = 32 if norm == "group" else 4  # 32 groups
    module = resnet.ResNet(
        depth, norm=norm, frozen_stages=frozen_stages, width=width, stages=(1, 1, 1)
    )
    tree = random_tree(module)
    state = {k: v for k, v in tree.items() if k != "params"}

    @tiny.jit
    def gradients(params, x):
        def loss(params):
            features, new = module.apply(
                {"params": params, **state}, x, True, mutable=["batch_stats"]
            )
            return sum(jnp.sin(f).sum() for f in features), new

        return jax.grad(loss, has_aux=True)(params)

    grads, new = gradients(tree["params"], images())
    flat = functools.partial(traverse_util.flatten_dict, sep="/")
    return flat(tree), flat({"params": grads}), flat(dict(new))


@pytest.mark.parametrize("depth, norm, frozen_stages", FROZEN_CASES)
def test_frozen_paths_are_exactly_the_leaves_that_training_leaves_alone(depth, norm, frozen_stages):
    tree, gradients, new = train_gradients(depth, norm, frozen_stages)
    still = {p for p, g in gradients.items() if not np.any(g)}
    still |= {p for p, v in new.items() if np.array_equal(v, tree[p])}
    patterns = resnet.frozen_paths("backbone", norm, frozen_stages)
    moved = {p.replace("/", "/backbone/", 1): p for p in tree}
    named = {p for path, p in moved.items() if any(re.fullmatch(f, path) for f in patterns)}
    assert named == still
    assert (frozen_stages == 0) == ("params/stem/conv/kernel" not in named)


def test_frozen_paths_of_another_prefix_do_not_match():
    patterns = resnet.frozen_paths("backbone", "frozen", 1)
    for path in (
        "params/neck/lateral3/norm/scale",
        "params/backbone2/stem/conv/kernel",
        "params/backbone/stage2_block0/conv1/conv/kernel",
    ):
        assert not any(re.fullmatch(f, path) for f in patterns)


@pytest.mark.parametrize("depth, norm, frozen_stages", [(18, "batch", 2)])
def test_live_stages_above_frozen_ones_update_their_statistics(depth, norm, frozen_stages):
    tree, _, new = train_gradients(depth, norm, frozen_stages)
    for path, value in new.items():
        stage = int(match[1]) if (match := re.search(r"stage(\d)", path)) else 0
        assert np.array_equal(value, tree[path]) == (stage <= frozen_stages), path


@pytest.mark.parametrize("frozen_stages", [0, 1])
def test_no_norm_means_biases_in_every_stage(frozen_stages):
    module = resnet.ResNet(18, norm="none", frozen_stages=frozen_stages, **TINY)
    assert {p.split("/", 2)[-1] for p in flat_shapes(module) if "stem" in p} == {
        "conv/kernel",
        "conv/bias",
    }


def test_norm_modes_share_their_parameter_paths():
    def params(norm, frozen_stages):
        module = resnet.ResNet(
            18, norm=norm, frozen_stages=frozen_stages, width=32, stages=(1, 1, 1, 1)
        )
        return {p: s for p, s in flat_shapes(module).items() if p.startswith("params/")}

    expected = params("batch", 0)
    for norm in ("batch", "stored", "frozen", "group"):
        assert params(norm, 1) == expected


@pytest.mark.parametrize("depth", [18, 50])
def test_rematerialisation_keeps_the_paths_and_little_else_than_the_input_of_each_block(depth):
    def bytes_of(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    def kept(module):
        """Bytes that the forward pass stores for the backward pass, besides the tree itself."""
        x = jnp.zeros((2, 64, 64, 3))
        tree = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)

        def backward(tree):
            def loss(params):
                features, _ = module.apply({**tree, "params": params}, x, True, mutable=True)
                return sum(f.sum() for f in features)

            return jax.vjp(loss, tree["params"])[1]

        return bytes_of(jax.eval_shape(backward, tree)) - bytes_of(tree)

    module = functools.partial(resnet.ResNet, depth, norm="batch", frozen_stages=0, width=16)
    assert flat_shapes(module(remat=True)) == flat_shapes(module(remat=False))
    assert kept(module(remat=True)) < 0.3 * kept(module(remat=False))


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(depth=51), r"depth 51 is not one of \[18, 34, 50, 101\]"),
        (dict(style="tf"), "style 'tf' is neither 'pytorch' nor 'caffe'"),
        (dict(norm="layer"), "norm mode 'layer'"),
    ],
)
def test_bad_fields_are_refused_with_their_value(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        flat_shapes(resnet.ResNet(**{"frozen_stages": 0, **fields}))

"""The computation of every section of a cfg, and suppression, against plain NumPy."""

import jax
import numpy as np
import pytest
import tiny

from detlab import contract, types
from detlab.darknet import cfg as darknet_cfg
from detlab.detectors import darknet

# It needs 8 channels, which every section here gives.
HEAD = "[yolo]\nanchors=4,6\nnum=1\nmask=0\nclasses=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\npad=1\n"

# A network of all sections, each with what comes before its head.  The first two are 12x10.
SECTIONS = {
    "linear, a bias": CONV + "activation=linear\n",
    "a norm": CONV + "batch_normalize=1\nactivation=linear\n",
    "a residual": "[shortcut]\nfrom=-4\nactivation=leaky\n",
    "groups": CONV + "groups=2\nactivation=leaky\n",
    "depthwise": CONV + "groups=8\nstride=2\nactivation=relu\n",
    "dilation": CONV + "dilation=2\nactivation=mish\n",
    "no padding": "[convolutional]\nfilters=8\nsize=2\nactivation=swish\n",
    "a size of 1 with dilation": "[convolutional]\nfilters=8\ndilation=2\nactivation=logistic\n",
    "upsampling": "[upsample]\nstride=3\n",
    "a pool of stride 2": "[maxpool]\nsize=2\nstride=2\n",
    "a pool of stride 1 that keeps the size": "[maxpool]\nsize=2\nstride=1\n",
    "a pool of SPP": "[maxpool]\nsize=5\nstride=1\n",
    "a pool without padding": "[maxpool]\nsize=3\nstride=1\npadding=0\n",
    "a route back": "[route]\nlayers=0\n",
    "a part of a route": "[convolutional]\nfilters=16\nactivation=linear\n"
    + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n",
    "two parts joined": "[route]\nlayers=-2,-1\ngroups=2\ngroup_id=0\n"
    + "[convolutional]\nfilters=8\nactivation=linear\n",
    "a sum of three": "[shortcut]\nfrom=0,2\nactivation=linear\n",
    "dropout": "[dropout]\nprobability=.25\n",
    "a wider layer": "[convolutional]\nfilters=8\nactivation=linear\n",
    "a sum with fewer and with more channels": "[convolutional]\nfilters=4\nactivation=linear\n"
    + "[convolutional]\nfilters=12\nactivation=linear\n"
    + "[route]\nlayers=-3\n[shortcut]\nfrom=-3,-2\nactivation=leaky\n",
    "a weight for each input": "[shortcut]\nfrom=-4,-2\nweights_type=per_feature\n"
    + "weights_normalization=softmax\n",
    "weights for each layer, as they are": "[shortcut]\nfrom=-2\nweights_type=per_layer\n",
    "weights of each channel": "[shortcut]\nfrom=-6,-2\nweights_type=per_channel\n"
    + "weights_normalization=relu\nactivation=swish\n",
    "normalization without weights": "[shortcut]\nfrom=-2\nweights_normalization=softmax\n",
    "squeeze and excitation": "[avgpool]\n[convolutional]\nfilters=8\nactivation=logistic\n"
    + "[scale_channels]\nfrom=-3\n",
    "a scale of each cell": "[convolutional]\nfilters=1\nactivation=logistic\n"
    + "[scale_channels]\nfrom=-2\nscale_wh=1\nactivation=leaky\n",
    "attention": CONV + "activation=logistic\n[sam]\nfrom=-2\nactivation=leaky\n",
    "shared weights": CONV
    + "batch_normalize=1\nactivation=mish\n"
    + CONV
    + "batch_normalize=1\nactivation=relu\nshare_index=-1\ndilation=2\n",
    "upsampling with a scale": "[upsample]\nstride=2\nscale=.5\n",
    "blocks to channels": "[convolutional]\nfilters=2\nactivation=linear\n"
    + "[reorg3d]\nstride=2\n",
    "reorg": "[upsample]\nstride=2\n[convolutional]\nfilters=4\nactivation=linear\n"
    + "[reorg]\nstride=2\n[convolutional]\nfilters=8\nactivation=linear\n",
    "means of windows": "[local_avgpool]\nsize=3\nstride=2\n",
    "means of even windows": "[local_avg]\nsize=2\nstride=1\n",
    "means without padding": "[local_avgpool]\nsize=2\nstride=2\npadding=0\n",
}
NETWORK = darknet_cfg.parse(
    "[net]\nwidth=10\nheight=12\nchannels=3\n" + "".join(x + HEAD for x in SECTIONS.values())
)


def convolved(x, kernel, layer):
    """One output cell after another, as a sum over the cells of its window."""
    size, groups = layer.size, layer.groups
    dilation = layer.dilation if size > 1 else 1
    border = (size // 2 if layer.pad else layer.padding) * dilation
    x = np.pad(x, ((border, border), (border, border), (0, 0)))
    reach = dilation * (size - 1) + 1
    rows, columns = ((side - reach) // layer.stride + 1 for side in x.shape[:2])
    inputs, filters = x.shape[2] // groups, layer.filters // groups
    out = np.zeros((rows, columns, layer.filters))
    for i, j, group in np.ndindex(rows, columns, groups):
        of_group = slice(group * filters, (group + 1) * filters)
        for ki, kj in np.ndindex(size, size):
            cell = x[i * layer.stride + ki * dilation, j * layer.stride + kj * dilation]
            seen = cell[group * inputs : (group + 1) * inputs]
            out[i, j, of_group] += seen @ kernel[ki, kj, :, of_group]
    return out


def pooled(x, layer, reduce):
    """Darknet's: the window of cell i begins at i * stride - padding // 2."""
    height, width = x.shape[:2]
    rows = (height + layer.padding - layer.size) // layer.stride + 1
    columns = (width + layer.padding - layer.size) // layer.stride + 1
    out = np.zeros((rows, columns, x.shape[2]))
    for i, j in np.ndindex(rows, columns):
        top, left = (k * layer.stride - layer.padding // 2 for k in (i, j))
        window = x[max(top, 0) : top + layer.size, max(left, 0) : left + layer.size]
        out[i, j] = reduce(window, axis=(0, 1))
    return out


def summed(x, others, layer, params):
    """[shortcut], channel by channel."""
    inputs = [x, *others]
    if layer.weights_type == "none":
        weights = np.ones((len(inputs), 1))
    else:
        weights = np.float64(params["weights"]).reshape(len(inputs), -1)
        if layer.weights_normalization == "softmax":
            weights = np.exp(weights - weights.max(0))
        elif layer.weights_normalization == "relu":
            weights = np.maximum(weights, 0.001)
        if layer.weights_normalization != "none":
            weights = weights / (1e-4 + weights.sum(0))
    out = np.zeros_like(x)
    for y, weight in zip(inputs, weights):
        for channel in range(min(x.shape[-1], y.shape[-1])):
            out[..., channel] += y[..., channel] * weight[channel % len(weight)]
    return activated(out, layer.activation)


def blocks(x, stride):
    """[reorg3d], cell by cell."""
    height, width, channels = x.shape
    out = np.zeros((height // stride, width // stride, stride**2 * channels))
    for i, j, dy, dx, c in np.ndindex(*out.shape[:2], stride, stride, channels):
        out[i, j, (dy * stride + dx) * channels + c] = x[stride * i + dy, stride * j + dx, c]
    return out


def activated(x, name):
    sigmoid = 1 / (1 + np.exp(-x))
    return {
        "linear": x,
        "leaky": np.where(x > 0, x, 0.1 * x),
        "mish": x * np.tanh(np.log(1 + np.exp(x))),
        "relu": np.maximum(x, 0),
        "logistic": sigmoid,
        "swish": x * sigmoid,
    }[name]


def layer_by_layer(image, variables):
    """The output of every layer of `NETWORK` for an image, in float64."""
    x, outputs = image.astype(np.float64), []
    for number, layer in enumerate(NETWORK.layers):
        match layer:
            case darknet_cfg.Convolutional():
                owner = f"layer{darknet_cfg.owner(NETWORK, number)}"
                params = variables["params"][owner]
                x = convolved(x, np.float64(params["kernel"]), layer)
                if layer.batch_normalize:
                    stats = variables["batch_stats"][owner]["norm"]
                    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
                    x = x * params["norm"]["scale"] + params["norm"]["bias"]
                else:
                    x = x + params["bias"]
                x = activated(x, layer.activation)
            case darknet_cfg.Shortcut():
                others = [outputs[source] for source in layer.layers]
                x = summed(x, others, layer, variables["params"].get(f"layer{number}"))
            case darknet_cfg.AvgPool():
                x = x.mean((0, 1), keepdims=True)
            case darknet_cfg.ScaleChannels() | darknet_cfg.Sam():
                x = activated(outputs[layer.layers[0]] * x, layer.activation)
            case darknet_cfg.Reorg3d():
                x = blocks(x, layer.stride)
            case darknet_cfg.Reorg():
                height, width, channels = x.shape
                flat = x.transpose(2, 0, 1).ravel()
                few = flat.reshape(channels // 4, height * 2, width * 2).transpose(1, 2, 0)
                flat = blocks(few, 2).transpose(2, 0, 1).ravel()
                x = flat.reshape(channels * 4, height // 2, width // 2).transpose(1, 2, 0)
            case darknet_cfg.LocalAvgPool():
                x = pooled(x, layer, np.mean)
            case darknet_cfg.Route():
                parts = (np.split(outputs[i], layer.groups, -1) for i in layer.layers)
                x = np.concatenate([part[layer.group_id] for part in parts], axis=-1)
            case darknet_cfg.Upsample():
                x = layer.scale * np.kron(x, np.ones((layer.stride, layer.stride, 1)))
            case darknet_cfg.MaxPool():
                x = pooled(x, layer, np.max)
        outputs.append(x)
    return outputs


@pytest.fixture(scope="module")
def network():
    """(variables with random values, images, the inputs of the heads, by section)."""
    module = darknet.Network(NETWORK)
    rng = np.random.default_rng(0)
    images = np.float32(rng.uniform(-1, 1, (2, 12, 10, 3)))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(lambda x: np.float32(rng.uniform(0.2, 0.6, x.shape)), shapes)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key in ("var", "scale") else x - np.float32(0.4), variables
    )
    found = tiny.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
    return variables, images, dict(zip(SECTIONS, found, strict=True))


@pytest.fixture(scope="module")
def expected(network):
    """The outputs of each section for the images."""
    variables, images, _ = network
    of_images = [layer_by_layer(image, variables) for image in images]
    heads = [i for i, x in enumerate(NETWORK.layers) if isinstance(x, darknet_cfg.Yolo)]
    return {
        name: np.stack([outputs[head] for outputs in of_images])
        for name, head in zip(SECTIONS, heads, strict=True)
    }


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_computes_what_plain_loops_do(name, network, expected):
    found = network[2][name]
    assert found.shape == expected[name].shape and np.ptp(expected[name]) > 0.01
    np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)


def test_the_shapes_that_a_cfg_is_checked_by_are_those_of_the_network(network):
    shapes = darknet_cfg.shapes(NETWORK)
    heads = [s for s, x in zip(shapes, NETWORK.layers) if isinstance(x, darknet_cfg.Yolo)]
    for shape, found in zip(heads, network[2].values(), strict=True):
        assert found.shape[1:] == (shape.height, shape.width, shape.channels)


def test_images_on_which_layers_do_not_fit_are_refused_with_a_sentence():
    module = darknet.Darknet(**tiny.TINY["darknet"].fields)
    images = jax.ShapeDtypeStruct((1, 72, 96, 3), np.uint8)
    with pytest.raises(darknet_cfg.CfgError, match="images of 72x96 px: .*multiples of"):
        jax.eval_shape(contract.from_module(module).init, jax.random.key(0), images)


GREY = "[net]\nwidth=16\nheight=16\nchannels={}\n" + CONV + "activation=mish\n" + HEAD


def test_a_network_of_one_channel_sees_the_brightness_of_an_image():
    """The same as a network of RGB with a kernel for each colour, and as of a grey image."""
    modules = [darknet.Darknet(cfg=GREY.format(n), num_classes=3) for n in (1, 3)]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    grey, rgb = (contract.from_module(module) for module in modules)
    params, state = grey.init(jax.random.key(0), images)
    layer = params["layers"]["layer0"]
    assert layer["kernel"].shape == (3, 3, 1, 8)
    weighted = layer["kernel"] * np.array([0.299, 0.587, 0.114], np.float32)[:, None]
    coloured = {"layers": {"layer0": {**layer, "kernel": weighted}}}
    (found,) = grey.maps(params, state, images, False)[0].predictions
    (expected,) = rgb.maps(coloured, state, images, False)[0].predictions
    np.testing.assert_allclose(found, expected, atol=2e-6)  # sums in another order
    level = np.repeat(images[..., :1], 3, axis=-1)
    (found,) = grey.maps(params, state, level, False)[0].predictions
    kernels = np.repeat(layer["kernel"], 3, axis=2) / 3
    coloured = {"layers": {"layer0": {**layer, "kernel": kernels}}}
    (expected,) = rgb.maps(coloured, state, level, False)[0].predictions
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(darknet_cfg.CfgError) as info:
        darknet.Darknet(cfg=GREY.format(channels), num_classes=3).check()
    assert str(info.value) == (
        f"config.model.cfg: [net] has channels={channels}, but images have 3 channels (RGB), or 1"
        " for a network of grey images; choose a network with channels=3 or channels=1."
    )


def test_dropout_in_training_keeps_the_mean():
    cfg = "[net]\nwidth=64\nheight=64\nchannels=8\n[dropout]\nprobability=.25\n" + HEAD
    module = darknet.Network(darknet_cfg.parse(cfg))
    ones = np.ones((1, 64, 64, 8), np.float32)
    (found,) = module.apply({}, ones, train=True, rngs={"sample": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
    assert np.mean(found) == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(module.apply({}, ones, train=False)[0], ones)


def test_boxes_centred_beyond_the_edge_are_kept_unless_there_is_padding():
    """With new_coords and scale_x_y=2 a centre may lie half a cell off the canvas."""
    head = "[yolo]\nanchors=8,4\nnum=1\nmask=0\nclasses=1\nnew_coords=1\nscale_x_y=2\n"
    conv = "[convolutional]\nfilters=6\nsize=8\nstride=8\nactivation=logistic\n"
    cfg = "[net]\nwidth=16\nheight=8\nchannels=3\n" + conv + head
    module = darknet.Darknet(cfg=cfg, num_classes=1, score_threshold=0.25, num_candidates=2)
    raw = np.zeros((1, 1, 2, 6), np.float32)
    raw[0, 0, :, :] = [[0.5, 0.5, 0.5, 0.5, 0.6, 1.0], [1.0, 0.25, 0.5, 1.0, 0.5, 0.9]]
    maps = darknet.Outputs((), (raw,))
    found = module.candidates(maps, np.array([[8, 16]]), (8, 16))
    np.testing.assert_allclose(found.scores, [[0.6, 0.45]], rtol=1e-6)
    # Centres (4, 4) and (8 + 1.5 * 8, 0), sizes 8x4 times 4 value^2.
    np.testing.assert_allclose(found.boxes, [[[0, 2, 8, 6], [16, -8, 24, 8]]], atol=1e-5)
    found = module.candidates(maps, np.array([[8, 12]]), (8, 16))
    assert found.valid.tolist() == [[True, False]]


def greedy(boxes, scores, labels, threshold, measure, by_class):
    """Indices of the boxes that are kept, best first."""
    stays = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in stays if labels[j] == labels[i] or not by_class]
        if all(measure(boxes[j], boxes[i]) <= threshold for j in rivals):
            stays.append(i)
    return stays


def measure_of(kind, beta, sides):
    def measure(a, b):
        inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
        iou = inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)
        apart = ((a[:2] + a[2:] - b[:2] - b[2:]) / 2 / sides) ** 2
        outer = ((np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])) / sides) ** 2
        power = {"default": None, "greedynms": 0.6, "diounms": beta}[kind]
        return iou if power is None else iou - (apart.sum() / outer.sum()) ** power

    return measure


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("kind", ["default", "greedynms", "diounms"])
def test_suppression_equals_plain_loops(kind, by_class):
    """On a network twice as wide as high, with the cfg's power for `diounms`."""
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 40, (60, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(15, 30, (60, 2))], axis=1))
    scores, labels = np.float32(rng.permutation(60) / 60 + 0.01), rng.integers(0, 2, 60)
    head = "[yolo]\nanchors=4,6\nnum=1\nmask=0\nclasses=2\nbeta_nms=0.9\n"
    conv = "[convolutional]\nfilters=7\nactivation=linear\n"
    cfg = "[net]\nwidth=128\nheight=64\nchannels=3\n" + conv + head + f"nms_kind={kind}\n"
    module = darknet.Darknet(cfg=cfg, num_classes=2, class_agnostic=not by_class, nms_iou=0.3)
    candidates = types.Detections(boxes, scores, np.int32(labels), np.ones(60, bool))
    found = module.suppress(jax.tree.map(lambda x: x[None], candidates))
    measure = measure_of(kind, 0.9, np.array([128, 64]))
    stays = greedy(boxes, scores, labels, 0.3, measure, by_class)
    assert 3 < len(stays) < 50
    np.testing.assert_allclose(found.scores[0][found.valid[0]], scores[stays], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0][found.valid[0]], boxes[stays], rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_kernels_start_as_darknets(groups):
    """convolutional_layer.c: rand_uniform(-1, 1) * sqrt(2 / (size * size * c / groups))."""
    layer = darknet_cfg.Convolutional(filters=256, size=3, groups=groups)
    x = np.zeros((1, 4, 4, 32), np.float32)
    variables = darknet.Convolution("batch").init(jax.random.key(0), x, layer, False)
    kernel, bound = variables["params"]["kernel"], np.sqrt(2 / (9 * 32 / groups))
    assert np.abs(kernel).max() <= bound
    share, _ = np.histogram(kernel, 4, (-bound, bound), density=True)
    np.testing.assert_allclose(share, 0.5 / bound, rtol=0.05)

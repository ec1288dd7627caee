"""Published forms without a recorded case: their files convert and compute what they say.

The forward pass is written out in NumPy from the names and layouts of the file, on BGR images if
the form was trained on them; detlab gets the converted weights and the images in RGB.
"""

import types as python_types

import numpy as np
import pytest
import tables
import tiny

from detlab import config as config_lib
from detlab import contract
from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_reppoints, mmdet_retinanet, mmdet_sabl_retinanet

# float64 by hand; a few dozen float32 convolutions here.
CLOSE = dict(rtol=1e-3, atol=1e-4)
SMALL = dict(num_classes=3, backbone_width=4, neck_width=8, head_width=8, head_convs=2)


class File:
    """The tensors of a file and the layers that mmdet makes of them, on NCHW arrays."""

    def __init__(self, tensors):
        self.tensors = {name: value.astype(np.float64) for name, value in tensors.items()}

    def conv(self, name, x, stride=1):
        kernel = self.tensors[f"{name}.weight"]
        size = kernel.shape[-1]
        margin = [(0, 0), (0, 0)] + 2 * [(size // 2, size // 2)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, margin), (size, size), (2, 3))
        out = np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], kernel)
        return out + self.per_channel(f"{name}.bias") if f"{name}.bias" in self.tensors else out

    def per_channel(self, name):
        return self.tensors[name].reshape(1, -1, 1, 1)

    def batch_norm(self, name, x):
        mean, var, scale, bias = (
            self.per_channel(f"{name}.{x}")
            for x in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def group_norm(self, name, x, groups):
        split = x.reshape(len(x), groups, -1)
        split = split - split.mean(-1, keepdims=True)
        split = split / np.sqrt((split**2).mean(-1, keepdims=True) + 1e-5)
        scale, bias = (self.per_channel(f"{name}.{part}") for part in ("weight", "bias"))
        return split.reshape(x.shape) * scale + bias

    def bottleneck(self, name, x, stride, style):
        strides = (stride, 1, 1) if style == "caffe" else (1, stride, 1)
        y = x
        for i, own in enumerate(strides, start=1):
            y = self.batch_norm(f"{name}.bn{i}", self.conv(f"{name}.conv{i}", y, own))
            y = np.maximum(y, 0) if i < 3 else y
        x = self.conv(f"{name}.downsample.0", x, stride)
        return np.maximum(y + self.batch_norm(f"{name}.downsample.1", x), 0)

    def pyramid(self, x, style):
        """P3 to P7 of a ResNet with one block in each stage."""
        x = np.maximum(self.batch_norm("backbone.bn1", self.conv("backbone.conv1", x, 2)), 0)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        x, found = windows[:, :, ::2, ::2].max((-2, -1)), []
        for stage in range(1, 5):
            x = self.bottleneck(f"backbone.layer{stage}.0", x, 1 if stage == 1 else 2, style)
            found.append(x)
        merged = [self.conv(f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(found[1:])]
        for i in (1, 0):
            merged[i] = merged[i] + merged[i + 1].repeat(2, axis=2).repeat(2, axis=3)
        levels = [self.conv(f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(merged)]
        for i, x in ((3, found[-1]), (4, None)):
            levels.append(self.conv(f"neck.fpn_convs.{i}.conv", levels[-1] if x is None else x, 2))
        return levels

    def head(self, x, tower, name, groups):
        for i in range(SMALL["head_convs"]):
            layer = f"bbox_head.{tower}_convs.{i}"
            x = self.conv(f"{layer}.conv", x)
            x = np.maximum(self.group_norm(f"{layer}.gn", x, groups) if groups else x, 0)
        return self.conv(f"bbox_head.{name}", x)


def random_file(table, detector, fields):
    """The tensors of a file: kernels that keep activations of order one, positive variances."""
    rng = np.random.default_rng(0)

    def value(path, shape):
        if path.endswith("kernel"):
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        if path.endswith(("scale", "var")):
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(0, 0.1, shape)

    wanted = tables.shapes(detector, fields)
    leaves = {path: value(path, shape).astype(np.float32) for path, shape in wanted.items()}
    return mapping.reverse(mapping.nest(leaves), table), wanted


FORMS = {
    "retinanet_coco:caffe": (
        mmdet_retinanet,
        {"cls_logits": ("cls", "retina_cls"), "box_deltas": ("reg", "retina_reg")},
    ),
    "sabl_retinanet_coco:gn": (
        mmdet_sabl_retinanet,
        {
            "cls_logits": ("cls", "retina_cls"),
            "bucket_logits": ("reg", "retina_bbox_cls"),
            "bucket_offsets": ("reg", "retina_bbox_reg"),
        },
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_converted_weights_compute_what_the_file_does(name):
    module, outputs = FORMS[name]
    published = config_lib.load(name)
    groups = 4 if name.endswith("gn") else 0
    fields = {**published.model.to_dict(), **SMALL, "backbone_stages": (1, 1, 1, 1)}
    fields |= {"norm_groups": groups} if groups else {}
    config = python_types.SimpleNamespace(detector=published.detector, model=fields)
    bgr = name.endswith("caffe")
    tensors, wanted = random_file(module.table(bgr), config.detector, fields)
    tree, _ = mapping.convert(tensors, module.table(bgr), wanted)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)

    detector = contract.build(config)
    params = tree.pop("params")
    found = tiny.jit(lambda *args: detector.maps(*args, False)[0])(params, tree, images)

    # The values of mmdetection's configurations, in the order of the file's channels.
    mean, std = (
        ((103.530, 116.280, 123.675), 1.0)
        if bgr
        else ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    seen = (images[..., ::-1] if bgr else images).astype(np.float64)
    seen = ((seen - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    file = File(tensors)
    levels = file.pyramid(seen, "caffe" if bgr else "pytorch")
    for output, (tower, layer) in outputs.items():
        for level, x in enumerate(levels):
            expected = file.head(x, tower, layer, groups).transpose(0, 2, 3, 1)
            largest = np.abs(expected).max()
            got = getattr(found, output)[level]
            np.testing.assert_allclose(got / largest, expected / largest, **CLOSE)


@pytest.mark.parametrize("variant", ["plain", "minmax", "partial_minmax", "bbox_grid"])
def test_every_form_of_reppoints_converts_both_ways(variant):
    """tests/heads/test_reppoints.py computes heads without norms by hand."""
    fields = {**tiny.TINY["reppoints"].fields, **config_lib.load(f"reppoints_coco:{variant}").model}
    _, tensors = tables.there_and_back(mmdet_reppoints.table(), "reppoints", fields)
    assert ("bbox_head.cls_convs.0.gn.weight" in tensors) == (variant != "plain")
    assert ("bbox_head.cls_convs.0.conv.bias" in tensors) == (variant == "plain")
    assert ("bbox_head.moment_transfer" in tensors) == (variant == "plain")
    known = sources.fitting(mmdet_reppoints.SOURCES, tensors)
    assert [source.detector for source in known] == ["reppoints"]

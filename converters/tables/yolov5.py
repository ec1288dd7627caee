"""YOLOv5's `.pt` files and state dicts (ultralytics/yolov5, releases 3.0 to 7.0) -> `yolov5`.

Names are those of models/yolo.py: `model.<number>`, as the network's yaml numbers the modules, so
the same name is a different module in another release.  The table is therefore made for one
network, and `fields` determines a file's network from its names and shapes and, for a pickled
model, from the classes of its modules.

A state dict alone does not determine the activation: release 3.0 and the git tag v3.0, one commit
before it, have the same names and shapes.  Then hard-swish is assumed with the blocks of release 3,
and SiLU with those of later releases.  The channels of a prediction have the same order there and
here: anchor, then x, y, w, h, objectness, classes.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from detlab import errors
from detlab.backbones import yolov5
from detlab.converters import mapping, sources
from detlab.converters.readers import contents
from detlab.converters.tables import parts
from detlab.detectors import yolov5 as detector

# Depth and width multiples of the published sizes: n, s, m, l, x.
SIZES = ((0.33, 0.25), (0.33, 0.5), (0.67, 0.75), (1.0, 1.0), (1.33, 1.25))

# Anchors of the published networks with four levels, px.
ANCHORS_4 = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)

_ACTIVATIONS = {"SiLU": "silu", "Hardswish": "hard_swish", "LeakyReLU": "leaky_relu"}


class Found(NamedTuple):
    """Fields of the detector that a file determines."""

    certain: dict[str, Any]
    assumed: dict[str, Any]  # not in the file
    num_classes: int


class Numbers(NamedTuple):
    """The number in `model.<number>` of each module of a network, by its path here."""

    backbone: dict[str, int]
    neck: dict[str, int]
    head: int


def numbers(levels: int, pool: str) -> Numbers:
    """The numbers of a network with this many levels of detection."""
    top = levels + 2
    backbone = {"stem": 0}
    for stage in range(2, top + 1):
        backbone |= {f"stage{stage}_down": 2 * stage - 3, f"stage{stage}_block": 2 * stage - 2}
    backbone["spp"] = 2 * top - 1
    if pool == "spp":  # before the block
        backbone |= {"spp": 2 * top - 2, f"stage{top}_block": 2 * top - 1}
    # Upsampling and concatenation have numbers too.
    neck, number = {}, 2 * top
    for level in range(top - 1, 2, -1):
        neck |= {f"reduce{level + 1}": number, f"down_block{level}": number + 3}
        number += 4
    for level in range(4, top + 1):
        neck |= {f"up{level - 1}": number, f"up_block{level}": number + 2}
        number += 3
    return Numbers(backbone, neck, number)


def table(model: Mapping[str, Any]) -> mapping.Table:
    """The table of a network with these fields of `detectors.yolov5.YOLOv5`."""
    module = detector.YOLOv5(**model)
    levels = len(module.strides)
    known = numbers(levels, module.pool)
    rules = []
    for part, of_part in (("backbone", known.backbone), ("neck", known.neck)):
        for name, number in of_part.items():
            source, target = rf"model\.{number}", f"{part}/{name}"
            if name == "stem" and module.stem == "focus":
                rules += parts.conv_bn(rf"{source}\.conv", target)
            elif "block" in name:
                rules += _block(source, target, module.block)
            elif name == "spp":
                rules += parts.conv_bn(rf"{source}\.cv(\d)", rf"{target}/conv\1")
            else:
                rules += parts.conv_bn(source, target)
    for i in range(levels):
        rules += parts.conv(rf"model\.{known.head}\.m\.{i}", f"head/predict{i + 3}")
    anchors = mapping.Dropped(
        rf"model\.{known.head}\.(anchors|anchor_grid)", "in config.model.anchor_sizes"
    )
    return parts.whole(
        f"YOLOv5 ({module.block} blocks, {levels} levels)",
        rules,
        class_leaves=(r"params/head/predict\d/.*",),
        dropped=(anchors,),
    )


def buffers(model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Further arrays of the network's state dict: anchors in cells and, up to 5.0, also in px."""
    module = detector.YOLOv5(**model)
    sizes = np.array(module.anchor_sizes, np.float32)  # [L, A, 2]
    name = f"model.{numbers(len(sizes), module.pool).head}"
    cells = sizes / np.array(module.strides, np.float32)[:, None, None]
    found = {f"{name}.anchors": cells}
    if module.stem == "focus":
        found[f"{name}.anchor_grid"] = sizes[:, None, :, None, None]
    return found


def fields(file: contents.Contents) -> Found:
    """Determines the network of a file.

    Raises:
      UserError: detlab does not have the network.
    """
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    if "model.1.conv.bias" in shapes:
        raise errors.UserError(
            "its norms are fused into its convolutions, so it can only predict; convert the file"
            " that training wrote"
        )
    heads = {24: 3, 33: 4}  # number of the head -> levels
    levels = next((n for head, n in heads.items() if f"model.{head}.m.0.bias" in shapes), None)
    if levels is None or any(re.match(r"model\.\d+\.(proto|cv\d_kpts)\.", n) for n in shapes):
        raise errors.UserError(
            "it is a YOLOv5 for another task or with another layout; convert a detector with three"
            " or four levels, whose head is model.24 or model.33"
        )
    top = levels + 2
    block = "csp" if "model.2.cv3.weight" in shapes else "c3"
    stem = "focus" if "model.0.conv.conv.weight" in shapes else "conv6"
    pool = "sppf" if f"model.{2 * top - 2}.m.0.cv1.conv.weight" in shapes else "spp"
    known = numbers(levels, pool)
    weight = shapes.get("model.0.conv.conv.weight" if stem == "focus" else "model.0.conv.weight")
    channels = weight[1] // (4 if stem == "focus" else 1) if weight and len(weight) == 4 else 3
    if channels != 3:
        layer = "model.0.conv.conv" if stem == "focus" else "model.0.conv"
        raise errors.UserError(f"{mapping.image_channels(channels)} (the layer is {layer})")
    certain = dict(block=block, stem=stem, pool=pool, **_sizes(shapes, known, levels, pool))
    assumed = {}

    epsilon = file.modules.get("model.1.bn", {}).get("eps", 1e-3)
    if epsilon != 1e-3:
        raise errors.UserError(f"its norms have epsilon {epsilon!r}, but YOLOv5's have 0.001")
    act = file.modules.get("model.1.act", {})
    kind = str(act.get("class", "")).rpartition(".")[2]
    if not act:
        assumed["activation"] = "hard_swish" if block == "csp" else "silu"
    elif kind not in _ACTIVATIONS or act.get("negative_slope", 0.1) != 0.1:
        raise errors.UserError(
            f"its activation is {contents.printable(kind)}, but detlab supports only"
            f" {', '.join(_ACTIVATIONS)} (slope 0.1)"
        )
    else:
        certain["activation"] = _ACTIVATIONS[kind]
    pooling = f"model.{known.backbone['spp']}.m" + (".0" if pool == "spp" else "")
    size = file.modules.get(pooling, {}).get("kernel_size")
    if isinstance(size, int):
        certain["pool_size"] = size
    else:
        assumed["pool_size"] = 3 if (pool, levels) == ("spp", 4) else 5

    anchors, per_cell = file.tensors.get(f"model.{known.head}.anchors"), 3
    if anchors is not None and anchors.ndim == 3 and len(anchors) == levels:
        per_cell = anchors.shape[1]
        strides = 8 * 2 ** np.arange(levels)[:, None, None]
        certain["anchor_sizes"] = tuple(
            tuple(tuple(round(x, 4) for x in size) for size in level)
            for level in (anchors.astype(np.float64) * strides).tolist()
        )
    if levels == 4:
        assumed["level_balance"] = (4.0, 1.0, 0.25, 0.06)
        if "anchor_sizes" not in certain:
            assumed["anchor_sizes"] = ANCHORS_4
    outputs = shapes[f"model.{known.head}.m.0.bias"][0]
    return Found(certain, assumed, outputs // per_cell - 5)


def _sizes(shapes: Mapping[str, tuple], known: Numbers, levels: int, pool: str) -> dict[str, Any]:
    """Depth and width multiples, and the repeats that the depth multiple scales."""
    stages = range(2, levels + 3)

    def width(name: str) -> int:
        number = known.backbone[name]
        names = (f"model.{number}.conv.conv.weight", f"model.{number}.conv.weight")
        return next((shapes[n][0] for n in names if n in shapes), 0)

    def depth(number: int) -> int:
        pattern = rf"model\.{number}\.m\.(\d+)\.cv1\.conv\.weight"
        return sum(bool(re.fullmatch(pattern, name)) for name in shapes)

    widths = [width("stem"), *(width(f"stage{stage}_down") for stage in stages)]
    multiples = [multiple for _, multiple in SIZES] + [widths[-1] / 1024]
    fitting = [m for m in multiples if m and yolov5.widths_of(levels, m) == widths]
    if not fitting:
        raise errors.UserError(
            f"its stages have {', '.join(map(str, widths))} channels, which are not a multiple of"
            f" YOLOv5's {', '.join(map(str, yolov5.CHANNELS[levels]))}"
        )
    depths = [depth(known.backbone[f"stage{stage}_block"]) for stage in stages]
    neck = {depth(number) for name, number in known.neck.items() if "block" in name}
    if len(neck) > 1 or 0 in (*depths, *neck):
        raise errors.UserError("its blocks are not those of a YOLOv5")
    (neck_depth,) = neck
    repeats = ((3, 6, 9, 3, 3) if pool == "sppf" else (3, 9, 9, 3, 3))[: levels + 1]
    for multiple in dict.fromkeys(multiple for multiple, _ in SIZES):
        scaled = [yolov5.scaled_depth(n, multiple) for n in (*repeats, 3)]
        if scaled == [*depths, neck_depth]:
            found = dict(depth_multiple=multiple, repeats=repeats, neck_repeats=3)
            break
    else:  # not a published size
        found = dict(depth_multiple=1.0, repeats=tuple(depths), neck_repeats=neck_depth)
    return {"width_multiple": fitting[0], **found}


def _block(source: str, target: str, kind: str) -> list[mapping.Rule]:
    bottlenecks = parts.conv_bn(rf"{source}\.m\.(\d+)\.cv(\d)", rf"{target}/bottleneck\1/conv\2")
    if kind == "c3":
        return [*parts.conv_bn(rf"{source}\.cv(\d)", rf"{target}/conv\1"), *bottlenecks]
    rules = parts.batch_norm(rf"{source}\.bn", f"{target}/norm")
    for i in (1, 4):
        rules += parts.conv_bn(rf"{source}\.cv{i}", f"{target}/conv{i}")
    for i in (2, 3):
        rules += parts.conv(rf"{source}\.cv{i}", f"{target}/conv{i}", bias=False)
    return [*rules, *bottlenecks]


SOURCES = (
    sources.Source(
        "yolov5",
        "a YOLOv5 of release 3",
        ("model.1.conv.weight", "model.2.cv3.weight", "model.2.cv4.conv.weight"),
        table,
        "yolov5",
    ),
    sources.Source(
        "yolov5",
        "a YOLOv5 of releases 4 to 7",
        ("model.1.conv.weight", "model.2.cv3.conv.weight", "model.2.m.0.cv1.conv.weight"),
        table,
        "yolov5",
    ),
)

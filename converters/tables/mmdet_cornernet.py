"""mmdet's CornerNet (2.x and 3.x have the same names) -> detector `cornernet`.

Names of mmdet/models: backbones/hourglass.py and dense_heads/corner_head.py.  An hourglass lies in
the next larger one as `low2` there and as `inner` here.
"""

from converters import mapping
from converters.tables import torchvision_resnet

DEPTHS = range(8)  # sizes that an hourglass may have; its published one has 6

_BLOCKS = (("up1", "skip"), ("low1", "down"), ("low2", "inner"), ("low3", "up"))
_POOLING = (
    ("direction1_conv", "first"),
    ("direction2_conv", "second"),
    ("aftpool_conv", "pooled"),
    ("conv1", "shortcut"),
    ("conv2", "out"),
)
_CORNERS = (("tl", "top_left"), ("br", "bottom_right"))
_MAPS = (("heat", "heat"), ("off", "offset"), ("emb", "tag"))


def table(bgr: bool = False) -> mapping.Table:
    """The table.

    Args:
      bgr: the network was trained on BGR images, so its stem is flipped to RGB.
    """
    backbone = r"backbone\."
    stem = ("flip_bgr_in", "conv_oihw_to_hwio") if bgr else ("conv_oihw_to_hwio",)
    rules = [
        mapping.Rule(rf"{backbone}stem\.0\.conv\.weight", "params/backbone/stem/conv/kernel", stem),
        *torchvision_resnet.norm_rules(rf"{backbone}stem\.0\.bn", "backbone/stem/norm"),
        *_block(rf"{backbone}stem\.1\.0", "backbone/stem_block"),
        *_block(rf"{backbone}inters\.(\d+)", r"backbone/join\1"),
        *_conv_norm(rf"{backbone}out_convs\.(\d+)", r"backbone/out\1"),
        *_conv_norm(rf"{backbone}conv1x1s\.(\d+)", r"backbone/keep\1"),
        *_conv_norm(rf"{backbone}remap_convs\.(\d+)", r"backbone/remap\1"),
    ]
    for depth in DEPTHS:
        outer = rf"{backbone}hourglass_modules\.(\d+)" + r"\.low2" * depth
        target = r"backbone/hourglass\1" + "/inner" * depth
        for theirs, ours in _BLOCKS:
            rules += _block(rf"{outer}\.{theirs}\.(\d+)", rf"{target}/{ours}\2")
    for theirs, ours in _CORNERS:
        for pooling, name in _POOLING:
            rules += _conv_norm(
                rf"bbox_head\.{theirs}_pool\.(\d+)\.{pooling}", rf"branches_{ours}\1/pool/{name}"
            )
        for kind, name in _MAPS:
            source = rf"bbox_head\.{theirs}_{kind}\.(\d+)"
            rules += _conv(rf"{source}\.0\.conv", rf"branches_{ours}\1/{name}_conv/conv")
            rules += _conv(rf"{source}\.1\.conv", rf"branches_{ours}\1/{name}")
    return mapping.Table(
        "mmdet CornerNet",
        ("params", "batch_stats"),
        tuple(rules),
        (torchvision_resnet.COUNTERS,),
        class_leaves=(r"params/branches_\w+/heat/.*",),
    )


def _conv(source: str, target: str) -> list[mapping.Rule]:
    return [
        mapping.Rule(rf"{source}\.weight", f"params/{target}/kernel", ("conv_oihw_to_hwio",)),
        mapping.Rule(rf"{source}\.bias", f"params/{target}/bias"),
    ]


def _conv_norm(source: str, target: str) -> list[mapping.Rule]:
    kernel, _ = _conv(rf"{source}\.conv", f"{target}/conv")
    return [kernel, *torchvision_resnet.norm_rules(rf"{source}\.bn", f"{target}/norm")]


def _block(source: str, target: str) -> list[mapping.Rule]:
    """A residual block of two convolutions, with or without a convolution in its shortcut."""
    rules = []
    parts = [(f"conv{i}", f"bn{i}", f"conv{i}") for i in (1, 2)]
    parts.append((r"downsample\.0", r"downsample\.1", "shortcut"))
    for conv, norm, ours in parts:
        rules.append(_conv(rf"{source}\.{conv}", f"{target}/{ours}/conv")[0])
        rules += torchvision_resnet.norm_rules(rf"{source}\.{norm}", f"{target}/{ours}/norm")
    return rules

"""mmdet's CornerNet (2.x and 3.x have the same names) -> detector `cornernet`.

Names of mmdet/models: backbones/hourglass.py and dense_heads/corner_head.py.  An hourglass is
nested in the next larger one as `low2` there and as `inner` here.
"""

from collections.abc import Iterable

from detlab.converters import mapping, sources
from detlab.converters.tables import parts

DEPTHS = range(8)  # sizes that an hourglass may have; the published one has 6

_BLOCKS = (("up1", "skip"), ("low1", "down"), ("low2", "inner"), ("low3", "up"))
_POOLING = (
    ("direction1_conv", "first"),
    ("direction2_conv", "second"),
    ("aftpool_conv", "pooled"),
    ("conv1", "shortcut"),
    ("conv2", "out"),
)
CORNERS = (("tl", "top_left"), ("br", "bottom_right"))
MAPS = (("heat", "heat"), ("off", "offset"))


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr`: the network was trained on BGR images, so its stem is flipped to RGB."""
    return of_corners("mmdet CornerNet", (*MAPS, ("emb", "tag")), bgr)


def of_corners(
    name: str,
    maps: Iterable[tuple[str, str]],
    bgr: bool,
    more: Iterable[mapping.Rule] = (),
) -> mapping.Table:
    """The table of a corner detector.

    Args:
      name: of the network, in messages.
      maps: (name there, name here) of each map of a corner.
      bgr: as for `table`.
      more: further rules.
    """
    backbone = r"backbone\."
    rules = [
        *parts.conv_bn(rf"{backbone}stem\.0", "backbone/stem", bgr),
        *_block(rf"{backbone}stem\.1\.0", "backbone/stem_block"),
        *_block(rf"{backbone}inters\.(\d+)", r"backbone/join\1"),
        *parts.conv_bn(rf"{backbone}out_convs\.(\d+)", r"backbone/out\1"),
        *parts.conv_bn(rf"{backbone}conv1x1s\.(\d+)", r"backbone/keep\1"),
        *parts.conv_bn(rf"{backbone}remap_convs\.(\d+)", r"backbone/remap\1"),
    ]
    for depth in DEPTHS:
        outer = rf"{backbone}hourglass_modules\.(\d+)" + r"\.low2" * depth
        target = r"backbone/hourglass\1" + "/inner" * depth
        for theirs, ours in _BLOCKS:
            rules += _block(rf"{outer}\.{theirs}\.(\d+)", rf"{target}/{ours}\2")
    for theirs, ours in CORNERS:
        for pooling, layer in _POOLING:
            rules += parts.conv_bn(
                rf"bbox_head\.{theirs}_pool\.(\d+)\.{pooling}", rf"branches_{ours}\1/pool/{layer}"
            )
        for kind, ours_map in maps:
            source = rf"bbox_head\.{theirs}_{kind}\.(\d+)"
            rules += parts.conv(rf"{source}\.0\.conv", rf"branches_{ours}\1/{ours_map}_conv/conv")
            rules += parts.conv(rf"{source}\.1\.conv", rf"branches_{ours}\1/{ours_map}")
    return parts.whole(name, rules, more, class_leaves=(r"params/branches_\w+/heat/.*",))


def _block(source: str, target: str) -> list[mapping.Rule]:
    """A residual block of two convolutions, with or without a convolution in its shortcut."""
    rules = []
    names = [(f"conv{i}", f"bn{i}", f"conv{i}") for i in (1, 2)]
    names.append((r"downsample\.0", r"downsample\.1", "shortcut"))
    for conv, norm, ours in names:
        rules += parts.conv(rf"{source}\.{conv}", f"{target}/{ours}/conv", bias=False)
        rules += parts.batch_norm(rf"{source}\.{norm}", f"{target}/{ours}/norm")
    return rules


MARKS = ("backbone.hourglass_modules.0.up1.0.conv1.weight", "bbox_head.tl_emb.0.1.conv.weight")
SOURCES = (sources.Source("mmdet", "an mmdet CornerNet", MARKS, table, "cornernet"),)

"""mmdet's GFL (2.x and 3.x have the same names) -> detector `gfl`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/gfl_head.py.  The channels of a distribution are left, top, right, bottom there and
here, each with its bins in order.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet

_BINS = mapping.Dropped(
    r"bbox_head\.integral\.project", "the numbers 0, 1, 2 .. of a distribution, which are fixed"
)


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet GFL",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv(r"bbox_head\.gfl_cls", "head/cls_logits"),
        parts.conv(r"bbox_head\.gfl_reg", "head/distance_logits"),
        parts.scales(r"bbox_head\.scales", "box_scales"),
        class_leaves=("params/head/cls_logits/.*",),
        dropped=(_BINS,),
    )


MARKS = ("backbone.conv1.weight", "bbox_head.gfl_reg.weight")
SOURCES = (sources.Source("mmdet", "an mmdet GFL", MARKS, table, "gfl"),)

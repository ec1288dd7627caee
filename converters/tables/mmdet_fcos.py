"""mmdet's FCOS (2.x and 3.x have the same names) -> detector `fcos`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/fcos_head.py.  Sides are left, top, right, bottom there and here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`: True for all published files."""
    return parts.whole(
        "mmdet FCOS",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv(r"bbox_head\.conv_cls", "head/cls_logits"),
        parts.conv(r"bbox_head\.conv_reg", "head/box_distances"),
        parts.conv(r"bbox_head\.conv_centerness", "head/centerness"),
        parts.scales(r"bbox_head\.scales", "box_scales"),
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = (
    "backbone.conv1.weight",
    "bbox_head.conv_centerness.weight",
    "bbox_head.scales.0.scale",
)
SOURCES = (sources.Source("mmdet", "an mmdet FCOS", MARKS, table, "fcos"),)

"""mmdet's ATSS (2.x and 3.x have the same names) -> detector `atss`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/atss_head.py.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`: False for all published files."""
    return parts.whole(
        "mmdet ATSS",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv(r"bbox_head\.atss_cls", "head/cls_logits"),
        parts.conv(r"bbox_head\.atss_reg", "head/box_deltas"),
        parts.conv(r"bbox_head\.atss_centerness", "head/centerness"),
        parts.scales(r"bbox_head\.scales", "box_scales"),
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = (
    "backbone.conv1.weight",
    "bbox_head.atss_centerness.weight",
    "bbox_head.scales.0.scale",
)
SOURCES = (sources.Source("mmdet", "an mmdet ATSS", MARKS, table, "atss"),)

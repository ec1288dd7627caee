"""mmdet's RetinaNet with guided anchors (2.x and 3.x) -> detector `ga_retinanet`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/ga_retina_head.py.  Offsets are dy, dx of each tap there and here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet RetinaNet with guided anchors",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv(r"bbox_head\.conv_loc", "head/location_logits"),
        parts.conv(r"bbox_head\.conv_shape", "head/shapes"),
        parts.feature_adaption(r"bbox_head\.feature_adaption_cls", "head/cls_adaption"),
        parts.feature_adaption(r"bbox_head\.feature_adaption_reg", "head/box_adaption"),
        parts.conv(r"bbox_head\.retina_cls", "head/cls_logits"),
        parts.conv(r"bbox_head\.retina_reg", "head/box_deltas"),
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = (
    "backbone.conv1.weight",
    "bbox_head.retina_cls.weight",
    "bbox_head.feature_adaption_cls.conv_adaption.weight",
)
KIND = "an mmdet RetinaNet with guided anchors"
SOURCES = (sources.Source("mmdet", KIND, MARKS, table, "ga_retinanet"),)

"""mmdet's RetinaNet with SABL's head (2.x and 3.x) -> detector `sabl_retinanet`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/sabl_retina_head.py.  Buckets have the same order there and here: left, right, top,
bottom side, each from outside inwards.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table, with or without group norms; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet RetinaNet with SABL",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv(r"bbox_head\.retina_cls", "head/cls_logits"),
        parts.conv(r"bbox_head\.retina_bbox_cls", "head/bucket_logits"),
        parts.conv(r"bbox_head\.retina_bbox_reg", "head/bucket_offsets"),
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = (
    "backbone.conv1.weight",
    "bbox_head.retina_cls.weight",
    "bbox_head.retina_bbox_cls.weight",
)
KIND = "an mmdet RetinaNet with SABL"
SOURCES = (sources.Source("mmdet", KIND, MARKS, table, "sabl_retinanet"),)

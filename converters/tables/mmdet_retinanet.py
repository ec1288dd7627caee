"""mmdet's RetinaNet (2.x and 3.x have the same names) -> detector `retinanet`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/retina_head.py.  Anchors of a cell and the four deltas have the same order there and
here, so the two output convolutions keep the order of their channels.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet RetinaNet",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv(r"bbox_head\.retina_cls", "head/cls_logits"),
        parts.conv(r"bbox_head\.retina_reg", "head/box_deltas"),
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = ("backbone.conv1.weight", "bbox_head.retina_cls.weight")
SOURCES = (sources.Source("mmdet", "an mmdet RetinaNet", MARKS, table, "retinanet"),)

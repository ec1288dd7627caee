"""mmdet's Cascade R-CNN -> detector `cascade_rcnn`: Faster R-CNN's table, three box heads.

`roi_head.bbox_head` is a list there; the head of each stage has the names of Faster R-CNN's.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_faster_rcnn


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_faster_rcnn.table(bgr)
    shared = [rule for rule in base.rules if "/box_head/" not in rule.target]
    stages = mmdet_faster_rcnn.box_head(r"roi_head\.bbox_head\.(\d)", r"box_head_\1")
    return base._replace(
        name="mmdet Cascade R-CNN",
        rules=(*shared, *stages),
        class_leaves=(r"params/box_head_\d/cls_logits/.*",),
    )


MARKS = (
    "backbone.conv1.weight",
    "rpn_head.rpn_conv.weight",
    "roi_head.bbox_head.0.fc_reg.weight",
)
SOURCES = (sources.Source("mmdet", "an mmdet Cascade R-CNN", MARKS, table, "cascade_rcnn"),)

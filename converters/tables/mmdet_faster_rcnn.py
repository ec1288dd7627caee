"""mmdet's Faster R-CNN (2.x and 3.x have the same names) -> detector `faster_rcnn`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py,
dense_heads/rpn_head.py and roi_heads/bbox_heads/convfc_bbox_head.py.  Background is the last class
there and here; RoI features are flattened channel first there and channel last here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet Faster R-CNN",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(2, 6), range(2, 6)),
        parts.conv(r"rpn_head\.rpn_conv", "rpn/conv/conv"),
        parts.conv(r"rpn_head\.rpn_cls", "rpn/cls_logits"),
        parts.conv(r"rpn_head\.rpn_reg", "rpn/box_deltas"),
        box_head(r"roi_head\.bbox_head", "box_head"),
        class_leaves=("params/box_head/(cls_logits|box_deltas)/.*",),
    )


def box_head(source: str, target: str) -> list[mapping.Rule]:
    """The rules of a Shared2FCBBoxHead."""
    return [
        *parts.linear(rf"{source}\.shared_fcs\.0", f"{target}/fc0", ("chw_to_hwc_7x7",)),
        *parts.linear(rf"{source}\.shared_fcs\.1", f"{target}/fc1"),
        *parts.linear(rf"{source}\.fc_cls", f"{target}/cls_logits"),
        *parts.linear(rf"{source}\.fc_reg", f"{target}/box_deltas"),
    ]


MARKS = (
    "backbone.conv1.weight",
    "rpn_head.rpn_conv.weight",
    "roi_head.bbox_head.fc_reg.weight",
)
SOURCES = (sources.Source("mmdet", "an mmdet Faster R-CNN", MARKS, table, "faster_rcnn"),)

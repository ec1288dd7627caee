"""mmdet's Faster R-CNN with guided anchors (2.x and 3.x) -> detector `ga_rcnn`.

Faster R-CNN's table, but for the names of mmdet/models/dense_heads/ga_rpn_head.py.  Offsets are dy,
dx of each tap there and here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_faster_rcnn, parts

GUIDED = (
    parts.conv(r"rpn_head\.conv_loc", "rpn/location_logits"),
    parts.conv(r"rpn_head\.conv_shape", "rpn/shapes"),
    parts.feature_adaption(r"rpn_head\.feature_adaption", "rpn/adaption"),
    parts.conv(r"rpn_head\.conv_cls", "rpn/cls_logits"),
    parts.conv(r"rpn_head\.conv_reg", "rpn/box_deltas"),
)


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_faster_rcnn.table(bgr)
    tiled = ("params/rpn/cls_logits/", "params/rpn/box_deltas/")
    others = (rule for rule in base.rules if not rule.target.startswith(tiled))
    rules = (*others, *(rule for part in GUIDED for rule in part))
    return base._replace(name="mmdet Faster R-CNN with guided anchors", rules=rules)


KIND = "an mmdet Faster R-CNN with guided anchors"
MARKS = (*mmdet_faster_rcnn.MARKS, "rpn_head.feature_adaption.conv_adaption.weight")
SOURCES = (sources.Source("mmdet", KIND, MARKS, table, "ga_rcnn"),)

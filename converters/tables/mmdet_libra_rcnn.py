"""mmdet's Libra R-CNN -> detector `libra_rcnn`: Faster R-CNN's table and a balanced pyramid.

The neck is a list there: `neck.0` is necks/fpn.py, `neck.1` necks/bfp.py with mmcv's NonLocal2d.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_faster_rcnn, parts


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_faster_rcnn.table(bgr)
    others = [rule for rule in base.rules if not rule.target.startswith("params/neck/")]
    necks = [*parts.fpn(range(2, 6), range(2, 6), r"neck\.0"), *parts.bfp(r"neck\.1")]
    return base._replace(name="mmdet Libra R-CNN", rules=(*others, *necks))


MARKS = (*mmdet_faster_rcnn.MARKS, "neck.1.refine.g.conv.weight")
SOURCES = (sources.Source("mmdet", "an mmdet Libra R-CNN", MARKS, table, "libra_rcnn"),)

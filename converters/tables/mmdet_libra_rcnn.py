"""mmdet's Libra R-CNN -> detector `libra_rcnn`: Faster R-CNN's table and a balanced pyramid.

The neck is a list there: `neck.0` is necks/fpn.py, `neck.1` necks/bfp.py with mmcv's NonLocal2d.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_faster_rcnn, parts


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_faster_rcnn.table(bgr)
    return parts.with_bfp(base, "mmdet Libra R-CNN", range(2, 6), range(2, 6))


MARKS = (*mmdet_faster_rcnn.MARKS, "neck.1.refine.g.conv.weight")
SOURCES = (sources.Source("mmdet", "an mmdet Libra R-CNN", MARKS, table, "libra_rcnn"),)

"""mmdet's Libra RetinaNet -> detector `libra_retinanet`: RetinaNet's table and a balanced pyramid.

The neck is a list there: `neck.0` is necks/fpn.py, `neck.1` necks/bfp.py with mmcv's NonLocal2d.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_retinanet, parts


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_retinanet.table(bgr)
    return parts.with_bfp(base, "mmdet Libra RetinaNet", range(3, 6), range(3, 8))


MARKS = (*mmdet_retinanet.MARKS, "neck.1.refine.g.conv.weight")
SOURCES = (sources.Source("mmdet", "an mmdet Libra RetinaNet", MARKS, table, "libra_retinanet"),)

"""mmdet's CentripetalNet (2.x and 3.x have the same names) -> detector `centripetalnet`.

Names of mmdet/models/dense_heads/centripetal_head.py; all others are those of CornerNet.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_cornernet, parts

_SHIFTS = (("guiding_shift", "guiding"), ("centripetal_shift", "centripetal"))
_ADAPTION = ((r"dcn_offset\.(\d+)\.conv", "places"), (r"feat_adaption\.(\d+)", "deform"))


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr`: the network was trained on BGR images, so its stem is flipped to RGB."""
    rules = []
    for theirs, ours in mmdet_cornernet.CORNERS:
        for source, target in _ADAPTION:
            name = rf"bbox_head\.{theirs}_{source}"
            rules += parts.conv(name, rf"branches_{ours}\1/{target}", bias=False)
    maps = *mmdet_cornernet.MAPS, *_SHIFTS
    return mmdet_cornernet.of_corners("mmdet CentripetalNet", maps, bgr, rules)


MARKS = (mmdet_cornernet.MARKS[0], "bbox_head.tl_centripetal_shift.0.1.conv.weight")
SOURCES = (sources.Source("mmdet", "an mmdet CentripetalNet", MARKS, table, "centripetalnet"),)

"""mmdet's RepPoints (2.x and 3.x have the same names) -> detector `reppoints`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/reppoints_head.py.  The outputs keep the order of their channels: points are y, x pairs
there and here, and the four deltas of the variants with grid points are x, y, w, h.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet

_CONVS = (
    ("pts_init_conv", "init_conv"),
    ("pts_init_out", "init_points"),
    ("pts_refine_conv", "refine_deform"),
    ("pts_refine_out", "refine_points"),
    ("cls_conv", "cls_deform"),
    ("cls_out", "cls_logits"),
)


def table(bgr: bool = False) -> mapping.Table:
    """The table, with or without group norms; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet RepPoints",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="point"),
        *(parts.conv(rf"bbox_head\.reppoints_{a}", f"head/{b}") for a, b in _CONVS),
        [mapping.Rule(r"bbox_head\.moment_transfer", "params/head/moment_transfer")],
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = ("backbone.conv1.weight", "bbox_head.reppoints_pts_refine_out.weight")
SOURCES = (sources.Source("mmdet", "an mmdet RepPoints", MARKS, table, "reppoints"),)

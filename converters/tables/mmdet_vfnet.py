"""mmdet's VFNet (2.x and 3.x have the same names) -> detector `vfnet`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/vfnet_head.py.  Sides are left, top, right, bottom there and here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts, torchvision_resnet

_CONVS = (
    ("reg", "init_distances"),
    ("reg_refine_dconv", "refine_deform"),
    ("reg_refine", "refine_distances"),
    ("cls_dconv", "cls_deform"),
    ("cls", "cls_logits"),
)
_SCALES = (("scales", "init_scales"), ("scales_refine", "refine_scales"))


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    return parts.whole(
        "mmdet VFNet",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="box"),
        parts.conv_gn(r"bbox_head\.vfnet_reg_conv", "head/init_conv0"),
        *(parts.conv(rf"bbox_head\.vfnet_{a}", f"head/{b}") for a, b in _CONVS),
        *(parts.scales(rf"bbox_head\.{a}", f"head/{b}") for a, b in _SCALES),
        class_leaves=("params/head/cls_logits/.*",),
    )


MARKS = ("backbone.conv1.weight", "bbox_head.vfnet_reg_refine.weight")
SOURCES = (sources.Source("mmdet", "an mmdet VFNet", MARKS, table, "vfnet"),)

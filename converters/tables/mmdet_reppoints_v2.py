"""The RepPoints V2 of its authors, and of mmdetection-mini -> detector `reppoints_v2`.

Names of https://github.com/Scalsol/RepPointsV2, built on mmdet 2.x: those of mmdet's RepPoints,
dense_heads/reppoints_v2_head.py and ops/corner_pool.  Points are y, x pairs there and here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_reppoints, parts, torchvision_resnet

_CONVS = (
    ("pts_init_conv", "init_conv"),
    ("pts_init_out", "init_points"),
    ("pts_refine_conv", "refine_deform"),
    ("pts_refine_out", "refine_points"),
    ("cls_conv", "cls_deform"),
    ("cls_out", "cls_logits"),
    ("sem_out", "semantic_logits"),
    ("hem_tl_score_out", "top_left_heat"),
    ("hem_tl_offset_out", "top_left_offset"),
    ("hem_br_score_out", "bottom_right_heat"),
    ("hem_br_offset_out", "bottom_right_offset"),
)
_CORNERS = (("tl", "top_left"), ("br", "bottom_right"))
# Convolution and norm of a layer of the pooling, here.
_POOLING = (
    (r"p1_conv1\.conv", r"p1_conv1\.gn", "first"),
    (r"p2_conv1\.conv", r"p2_conv1\.gn", "second"),
    ("p_conv1", "p_gn1", "pooled"),
    ("conv1", "gn1", "shortcut"),
    (r"conv2\.conv", r"conv2\.gn", "out"),
)


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    pooling = []
    for corner, name in _CORNERS:
        for conv, norm, ours in _POOLING:
            source, target = rf"bbox_head\.hem_{corner}", f"head/{name}_pool/{ours}"
            pooling += parts.conv(rf"{source}\.{conv}", f"{target}/conv", bias=False)
            pooling += parts.group_norm(rf"{source}\.{norm}", f"{target}/norm")
    return parts.whole(
        "RepPoints V2",
        torchvision_resnet.rules(r"backbone\.", bgr),
        parts.fpn(range(3, 6), range(3, 8)),
        parts.towers(cls="cls", reg="point", shared="shared"),
        pooling,
        parts.conv_gn(r"bbox_head\.reppoints_sem_embedding", "head/semantic_embedding"),
        *(parts.conv(rf"bbox_head\.reppoints_{a}", f"head/{b}") for a, b in _CONVS),
        class_leaves=("params/head/(cls|semantic)_logits/.*",),
    )


MARKS = (*mmdet_reppoints.MARKS, "bbox_head.hem_tl.p_conv1.weight")
SOURCES = (sources.Source("mmdet", "a RepPoints V2", MARKS, table, "reppoints_v2"),)

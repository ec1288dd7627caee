"""mmdet's SSD and its pretrained VGG16 -> detector `ssd`.

Names of mmdet/models: backbones/ssd_vgg.py, necks/ssd_neck.py and dense_heads/ssd_head.py, from
version 2.14 on.  Before, the backbone had the extra layers, and files have the names of
`old_table`.  Background is the last class, and anchors have the same order, there and here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts

# Places of the convolutions in `features`; those of ReLUs and poolings lie between them.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
FC6, FC7 = 31, 33
MOST_EXTRAS = 9


def table(bgr: bool = False) -> mapping.Table:
    """The table of files from version 2.14 on; `bgr`: the network was trained on BGR images."""
    extras = (
        (rf"neck\.extra_layers\.{i}\.{j}\.conv", f"neck/extra{i + 1}/conv{j + 1}/conv")
        for i in range(MOST_EXTRAS)
        for j in range(2)
    )
    return _whole("mmdet SSD", r"neck\.l2_norm", extras, r"(\d+)\.0", bgr)


def old_table(bgr: bool = False) -> mapping.Table:
    """The table of files from before; `bgr` as in `table`."""
    extras = (
        (rf"backbone\.extra\.{2 * i + j}", f"neck/extra{i + 1}/conv{j + 1}/conv")
        for i in range(MOST_EXTRAS)
        for j in range(2)
    )
    return _whole("mmdet SSD of before 2.14", r"backbone\.l2_norm", extras, r"(\d+)", bgr)


def backbone_table(bgr: bool = False) -> mapping.Table:
    """The table of a file that holds only the backbone, pretrained on ImageNet."""
    return mapping.Table("mmdet VGG16", ("params/backbone",), tuple(vgg("", bgr)), ())


def vgg(prefix: str, bgr: bool = False) -> list[mapping.Rule]:
    r"""Rules of a VGG16 whose names start with `prefix`, such as r"backbone\."."""
    names = [
        (place, f"stage{i}/conv{j}")
        for i, places in enumerate(STAGES, start=1)
        for j, place in enumerate(places, start=1)
    ]
    names += [(FC6, "fc6"), (FC7, "fc7")]
    return [
        rule
        for place, name in names
        for rule in parts.conv(
            rf"{prefix}features\.{place}", f"backbone/{name}/conv", bgr=bgr and not place
        )
    ]


def _whole(name: str, l2_norm: str, extras, level: str, bgr: bool) -> mapping.Table:
    return parts.whole(
        name,
        vgg(r"backbone\.", bgr),
        [mapping.Rule(rf"{l2_norm}\.weight", "params/neck/l2_norm/scale")],
        (rule for source, target in extras for rule in parts.conv(source, target)),
        parts.conv(rf"bbox_head\.cls_convs\.{level}", r"head/cls_logits\1"),
        parts.conv(rf"bbox_head\.reg_convs\.{level}", r"head/box_deltas\1"),
        class_leaves=(r"params/head/cls_logits\d/.*",),
    )


MARKS = ("backbone.features.0.weight", "neck.l2_norm.weight", "bbox_head.cls_convs.0.0.weight")
OLD_MARKS = (
    "backbone.features.0.weight",
    "backbone.l2_norm.weight",
    "bbox_head.cls_convs.0.weight",
)
SOURCES = (
    sources.Source("mmdet", "an mmdet SSD", MARKS, table, "ssd"),
    sources.Source("mmdet", "an mmdet SSD of before 2.14", OLD_MARKS, old_table, "ssd"),
    sources.Source(
        "mmdet",
        "an mmdet VGG16",
        ("features.0.weight", "features.31.weight", "features.33.weight"),
        backbone_table,
        "ssd",
        is_part=True,
    ),
)

"""mmdet's YOLOv3 and its pretrained Darknet-53 (2.x and 3.x have the same names) -> `yolov3`.

Names of mmdet/models: backbones/darknet.py, necks/yolo_neck.py and dense_heads/yolo_head.py.  The
reference counts levels from the coarsest.  The channels of a prediction have the same order there
and here: anchor, then x, y, w, h, objectness, classes.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts


def table(bgr: bool = False) -> mapping.Table:
    """The table of the whole detector; `bgr`: the network was trained on BGR images."""
    rules = _backbone(r"backbone\.", bgr)
    for i, level in ((1, 5), (2, 4), (3, 3)):
        rules += parts.conv_bn(rf"neck\.detect{i}\.conv(\d)", rf"neck/block{level}/conv\1")
        if level > 3:
            rules += parts.conv_bn(rf"neck\.conv{i}", f"neck/reduce{level}")
        rules += parts.conv_bn(rf"bbox_head\.convs_bridge\.{i - 1}", f"head/bridge{level}")
        rules += parts.conv(rf"bbox_head\.convs_pred\.{i - 1}", f"head/predict{level}")
    return parts.whole("mmdet YOLOv3", rules, class_leaves=(r"params/head/predict\d/.*",))


def backbone_table(bgr: bool = False) -> mapping.Table:
    """The table of a file that holds only the backbone, pretrained on ImageNet."""
    return mapping.Table(
        "mmdet Darknet-53",
        ("params/backbone", "batch_stats/backbone"),
        tuple(_backbone("", bgr)),
        (parts.COUNTERS,),
    )


def _backbone(prefix: str, bgr: bool) -> list[mapping.Rule]:
    stage = rf"{prefix}conv_res_block(\d)"
    return [
        *parts.conv_bn(rf"{prefix}conv1", "backbone/stem", bgr),
        *parts.conv_bn(rf"{stage}\.conv", r"backbone/stage\1_down"),
        *parts.conv_bn(rf"{stage}\.res(\d)\.conv(\d)", r"backbone/stage\1_block\2/conv\3"),
    ]


SOURCES = (
    sources.Source(
        "mmdet",
        "an mmdet YOLOv3",
        ("backbone.conv_res_block1.conv.conv.weight", "bbox_head.convs_pred.0.weight"),
        table,
        "yolov3",
    ),
    sources.Source(
        "mmdet",
        "an mmdet Darknet-53",
        ("conv_res_block1.conv.conv.weight", "conv_res_block5.conv.conv.weight"),
        backbone_table,
        "yolov3",
        is_part=True,
    ),
)

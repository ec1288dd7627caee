"""mmdet's YOLOv3 and its pretrained Darknet-53 (2.x and 3.x have the same names) -> `yolov3`.

Names of mmdet/models: backbones/darknet.py, necks/yolo_neck.py and dense_heads/yolo_head.py.  The
reference counts levels from the coarsest.  The channels of a prediction have the same order there
and here: anchor, then x, y, w, h, objectness, classes.
"""

from converters import mapping
from converters.tables import torchvision_resnet

_KERNEL = ("conv_oihw_to_hwio",)


def table(bgr: bool = False) -> mapping.Table:
    """The table of the whole detector; `bgr`: the network was trained on BGR images."""
    levels = ((1, 5), (2, 4), (3, 3))
    rules = list(_backbone(r"backbone\.", bgr))
    for i, level in levels:
        rules += _conv_norm(rf"neck\.detect{i}\.conv(\d)", rf"neck/block{level}/conv\1")
        if level > 3:
            rules += _conv_norm(rf"neck\.conv{i}", f"neck/reduce{level}")
        rules += _conv_norm(rf"bbox_head\.convs_bridge\.{i - 1}", f"head/bridge{level}")
        source, target = rf"bbox_head\.convs_pred\.{i - 1}", f"params/head/predict{level}"
        rules += [
            mapping.Rule(rf"{source}\.weight", f"{target}/kernel", _KERNEL),
            mapping.Rule(rf"{source}\.bias", f"{target}/bias"),
        ]
    return mapping.Table(
        "mmdet YOLOv3",
        ("params/backbone", "params/neck", "params/head", "batch_stats"),
        tuple(rules),
        (torchvision_resnet.COUNTERS,),
        class_leaves=(r"params/head/predict\d/.*",),
    )


def backbone_table(bgr: bool = False) -> mapping.Table:
    """The table of a file that holds the backbone alone, pretrained on ImageNet."""
    return mapping.Table(
        "mmdet Darknet-53",
        ("params/backbone", "batch_stats/backbone"),
        tuple(_backbone("", bgr)),
        (torchvision_resnet.COUNTERS,),
    )


def _backbone(prefix: str, bgr: bool) -> list[mapping.Rule]:
    stage = rf"{prefix}conv_res_block(\d)"
    return [
        *_conv_norm(rf"{prefix}conv1", "backbone/stem", ("flip_bgr_in",) if bgr else ()),
        *_conv_norm(rf"{stage}\.conv", r"backbone/stage\1_down"),
        *_conv_norm(rf"{stage}\.res(\d)\.conv(\d)", r"backbone/stage\1_block\2/conv\3"),
    ]


def _conv_norm(source: str, target: str, first: tuple[str, ...] = ()) -> list[mapping.Rule]:
    """A convolution without bias and its norm; `first` is done to the kernel before all else."""
    return [
        mapping.Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", first + _KERNEL),
        mapping.Rule(rf"{source}\.bn\.weight", f"params/{target}/norm/scale"),
        mapping.Rule(rf"{source}\.bn\.bias", f"params/{target}/norm/bias"),
        mapping.Rule(rf"{source}\.bn\.running_mean", f"batch_stats/{target}/norm/mean"),
        mapping.Rule(rf"{source}\.bn\.running_var", f"batch_stats/{target}/norm/var"),
    ]

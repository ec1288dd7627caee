"""mmdet's RetinaNet (2.x and 3.x have the same names) -> detectors `retinanet` and `ghm`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/retina_head.py.  Anchors of a cell and the four deltas have the same order there and
here, so the two output convolutions keep the order of their channels.
"""

from converters import mapping
from converters.tables import torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table.

    Args:
      bgr: the network was trained on BGR images (the caffe-style configurations), so its stem is
        flipped to RGB; the pixel mean and std of the detector are in RGB order as always.
    """
    levels = ((i, i + 3) for i in range(3))
    outputs = ((i, i + 3) for i in range(5))
    convs = [
        *((rf"neck\.lateral_convs\.{i}\.conv", f"neck/lateral{level}/conv") for i, level in levels),
        *((rf"neck\.fpn_convs\.{i}\.conv", f"neck/output{level}/conv") for i, level in outputs),
        (r"bbox_head\.cls_convs\.(\d+)\.conv", r"head/cls_conv\1/conv"),
        (r"bbox_head\.reg_convs\.(\d+)\.conv", r"head/box_conv\1/conv"),
        (r"bbox_head\.retina_cls", "head/cls_logits"),
        (r"bbox_head\.retina_reg", "head/box_deltas"),
    ]
    kernels = [
        mapping.Rule(rf"{source}\.weight", f"params/{target}/kernel", ("conv_oihw_to_hwio",))
        for source, target in convs
    ]
    biases = [mapping.Rule(rf"{source}\.bias", f"params/{target}/bias") for source, target in convs]
    counts = [
        mapping.Rule(rf"bbox_head\.loss_{source}\.acc_sum", f"loss_state/{target}_counts")
        for source, target in (("cls", "cls"), ("bbox", "box"))
    ]
    edges = mapping.Dropped(r"bbox_head\.loss_\w+\.edges", "follow from the number of bins")
    return mapping.Table(
        "mmdet RetinaNet",
        ("params/backbone", "params/neck", "params/head", "batch_stats", "loss_state"),
        (*torchvision_resnet.rules(r"backbone\.", bgr), *kernels, *biases, *counts),
        (torchvision_resnet.COUNTERS, edges),
        class_leaves=("params/head/cls_logits/.*",),
    )

"""mmdet's FCOS (2.x and 3.x have the same names) -> detector `fcos`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/fcos_head.py.  Sides are left, top, right, bottom there and here.
"""

from converters import mapping
from converters.tables import torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table.

    Args:
      bgr: the network was trained on BGR images, as all published ones were, so its stem is
        flipped to RGB; the pixel mean and std of the detector are in RGB order as always.
    """
    levels = ((i, i + 3) for i in range(3))
    outputs = ((i, i + 3) for i in range(5))
    towers = (("cls", "cls"), ("reg", "box"))
    convs = [
        *((rf"neck\.lateral_convs\.{i}\.conv", f"neck/lateral{level}/conv") for i, level in levels),
        *((rf"neck\.fpn_convs\.{i}\.conv", f"neck/output{level}/conv") for i, level in outputs),
        *((rf"bbox_head\.{a}_convs\.(\d+)\.conv", rf"head/{b}_conv\1/conv") for a, b in towers),
        (r"bbox_head\.conv_cls", "head/cls_logits"),
        (r"bbox_head\.conv_reg", "head/box_distances"),
        (r"bbox_head\.conv_centerness", "head/centerness"),
    ]
    kernels = [
        mapping.Rule(rf"{source}\.weight", f"params/{target}/kernel", ("conv_oihw_to_hwio",))
        for source, target in convs
    ]
    biases = [mapping.Rule(rf"{source}\.bias", f"params/{target}/bias") for source, target in convs]
    norms = [
        mapping.Rule(
            rf"bbox_head\.{source}_convs\.(\d+)\.gn\.{theirs}",
            rf"params/head/{target}_conv\1/norm/{ours}",
        )
        for source, target in towers
        for theirs, ours in (("weight", "scale"), ("bias", "bias"))
    ]
    scales = mapping.Rule(r"bbox_head\.scales\.(\d+)\.scale", r"params/box_scales/scale\1")
    return mapping.Table(
        "mmdet FCOS",
        ("params/backbone", "params/neck", "params/head", "params/box_scales", "batch_stats"),
        (*torchvision_resnet.rules(r"backbone\.", bgr), *kernels, *biases, *norms, scales),
        (torchvision_resnet.COUNTERS,),
        class_leaves=("params/head/cls_logits/.*",),
    )

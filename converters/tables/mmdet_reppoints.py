"""mmdet's RepPoints (2.x and 3.x have the same names) -> detector `reppoints`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py and
dense_heads/reppoints_head.py.  Points are y, x pairs there and here, and the four deltas of the
form with grid points x, y, w, h, so the outputs keep the order of their channels.
"""

from converters import mapping
from converters.tables import torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table, of files with group norms and without.

    Args:
      bgr: the network was trained on BGR images, so its stem is flipped to RGB; the pixel mean and
        std of the detector are in RGB order as always.
    """
    blocks = [
        *((rf"neck\.lateral_convs\.{i}", f"neck/lateral{i + 3}") for i in range(3)),
        *((rf"neck\.fpn_convs\.{i}", f"neck/output{i + 3}") for i in range(5)),
        (r"bbox_head\.cls_convs\.(\d+)", r"head/cls_conv\1"),
        (r"bbox_head\.reg_convs\.(\d+)", r"head/point_conv\1"),
    ]
    convs = [
        *((rf"{source}\.conv", f"{target}/conv") for source, target in blocks),
        (r"bbox_head\.reppoints_pts_init_conv", "head/init_conv"),
        (r"bbox_head\.reppoints_pts_init_out", "head/init_points"),
        (r"bbox_head\.reppoints_pts_refine_conv", "head/refine_deform"),
        (r"bbox_head\.reppoints_pts_refine_out", "head/refine_points"),
        (r"bbox_head\.reppoints_cls_conv", "head/cls_deform"),
        (r"bbox_head\.reppoints_cls_out", "head/cls_logits"),
    ]
    kernels = [
        mapping.Rule(rf"{source}\.weight", f"params/{target}/kernel", ("conv_oihw_to_hwio",))
        for source, target in convs
    ]
    biases = [mapping.Rule(rf"{source}\.bias", f"params/{target}/bias") for source, target in convs]
    norms = [
        mapping.Rule(rf"{source}\.gn\.{theirs}", f"params/{target}/norm/{ours}")
        for source, target in blocks
        for theirs, ours in (("weight", "scale"), ("bias", "bias"))
    ]
    transfer = mapping.Rule(r"bbox_head\.moment_transfer", "params/head/moment_transfer")
    return mapping.Table(
        "mmdet RepPoints",
        ("params/backbone", "params/neck", "params/head", "batch_stats"),
        (*torchvision_resnet.rules(r"backbone\.", bgr), *kernels, *biases, *norms, transfer),
        (torchvision_resnet.COUNTERS,),
        class_leaves=("params/head/cls_logits/.*",),
    )

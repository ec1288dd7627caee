"""mmdet's Faster R-CNN (2.x and 3.x have the same names) -> detector `faster_rcnn`.

Names of mmdet/models: backbones/resnet.py (those of torchvision), necks/fpn.py,
dense_heads/rpn_head.py and roi_heads/bbox_heads/convfc_bbox_head.py.  Background is the last class
there and here; RoI features are flattened channel first there, channel last here.
"""

from converters import mapping
from converters.tables import torchvision_resnet


def table(bgr: bool = False) -> mapping.Table:
    """The table.

    Args:
      bgr: the network was trained on BGR images (the caffe-style configurations), so its stem is
        flipped to RGB; the pixel mean and std of the detector are in RGB order as always.
    """
    levels = [(i, i + 2) for i in range(4)]
    convs = [
        *((rf"neck\.lateral_convs\.{i}\.conv", f"neck/lateral{level}/conv") for i, level in levels),
        *((rf"neck\.fpn_convs\.{i}\.conv", f"neck/output{level}/conv") for i, level in levels),
        (r"rpn_head\.rpn_conv", "rpn/conv/conv"),
        (r"rpn_head\.rpn_cls", "rpn/cls_logits"),
        (r"rpn_head\.rpn_reg", "rpn/box_deltas"),
    ]
    head = r"roi_head\.bbox_head"
    linear = [
        (rf"{head}\.shared_fcs\.0", "box_head/fc0", ("chw_to_hwc_7x7", "linear_t")),
        (rf"{head}\.shared_fcs\.1", "box_head/fc1", ("linear_t",)),
        (rf"{head}\.fc_cls", "box_head/cls_logits", ("linear_t",)),
        (rf"{head}\.fc_reg", "box_head/box_deltas", ("linear_t",)),
    ]
    kernels = [(source, target, ("conv_oihw_to_hwio",)) for source, target in convs] + linear
    rules = [
        rule
        for source, target, transforms in kernels
        for rule in (
            mapping.Rule(rf"{source}\.weight", f"params/{target}/kernel", transforms),
            mapping.Rule(rf"{source}\.bias", f"params/{target}/bias"),
        )
    ]
    return mapping.Table(
        "mmdet Faster R-CNN",
        ("params/backbone", "params/neck", "params/rpn", "params/box_head", "batch_stats"),
        (*torchvision_resnet.rules(r"backbone\.", bgr), *rules),
        (torchvision_resnet.COUNTERS,),
        class_leaves=("params/box_head/(cls_logits|box_deltas)/.*",),
    )

"""mmdet's SABL Faster and Cascade R-CNN (2.x and 3.x) -> detector `sabl_rcnn`.

Backbone, neck and RPN are those of Faster R-CNN.  `roi_head.bbox_head` is a SABLHead, or a list of
three there; names are those of mmdet/models/roi_heads/bbox_heads/sabl_head.py.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_faster_rcnn, parts


def table(bgr: bool = False) -> mapping.Table:
    """The table of one stage and of several; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_faster_rcnn.table(bgr)
    shared = [rule for rule in base.rules if "/box_head/" not in rule.target]
    return base._replace(
        name="mmdet SABL R-CNN",
        rules=(
            *shared,
            *box_head(r"roi_head\.bbox_head", "box_head"),
            *box_head(r"roi_head\.bbox_head\.(\d)", r"box_head_\1"),
        ),
        class_leaves=(r"params/box_head(_\d)?/cls_logits/.*",),
    )


def box_head(source: str, target: str) -> list[mapping.Rule]:
    """The rules of a SABLHead."""
    return [
        *parts.linear(rf"{source}\.cls_fcs\.0", f"{target}/fc", ("chw_to_hwc_7x7",)),
        *parts.linear(rf"{source}\.fc_cls", f"{target}/cls_logits"),
        *parts.linear(rf"{source}\.fc_reg_cls", f"{target}/bucket_logits"),
        *parts.linear(rf"{source}\.fc_reg_offset", f"{target}/bucket_offsets"),
        *parts.conv(rf"{source}\.reg_pre_convs\.0\.conv", f"{target}/conv0"),
        *parts.conv(rf"{source}\.reg_pre_convs\.1\.conv", f"{target}/conv1"),
        *(rule for axis in "xy" for rule in _axis(source, target, axis)),
    ]


def _axis(source: str, target: str, axis: str) -> list[mapping.Rule]:
    """The rules of the layers along one axis."""
    return [
        *parts.conv(rf"{source}\.reg_conv_att_{axis}", f"{target}/attention_{axis}"),
        *parts.conv(rf"{source}\.reg_post_conv_{axis}s\.0\.conv", f"{target}/conv_{axis}"),
        *parts.conv_transpose(rf"{source}\.upsample_{axis}", f"{target}/upsample_{axis}"),
    ]


SOURCES = tuple(
    sources.Source(
        "mmdet",
        f"an mmdet SABL {kind} R-CNN",
        (
            "backbone.conv1.weight",
            "rpn_head.rpn_conv.weight",
            f"roi_head.bbox_head.{stage}fc_reg_cls.weight",
        ),
        table,
        "sabl_rcnn",
    )
    for kind, stage in (("Faster", ""), ("Cascade", "0."))
)

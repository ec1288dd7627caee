"""Improvements that the authors of FCOS added to its paper (arXiv:2006.09214)."""

IMPROVED = dict(
    center_radius=1.5,
    distances_in_strides=True,
    centerness_on_box=True,
    box_loss="giou",
)
# As published; the pixel mean is that of the backbone that the improved form starts from.
PUBLISHED = dict(**IMPROVED, conv_bias=True, nms_iou=0.6, pixel_mean=(123.675, 116.28, 103.53))

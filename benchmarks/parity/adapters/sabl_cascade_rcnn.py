"""mmdet's Cascade R-CNN with SABLHeads: the adapter of the form with one stage, for three."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import cascade_rcnn, sabl_rcnn


def fields(info: dict) -> dict:
    """Fields of `detectors.sabl_rcnn.SABLRCNN` with three stages."""
    with configs.readers(info) as (model, train, test):
        roi = model.child("roi_head")
        return {
            **cascade_rcnn.all_but_box_heads(info, model, roi, train, test),
            **sabl_rcnn.box_heads(roi.children("bbox_head", cascade_rcnn.STAGES), roi, info),
        }


ADAPTER = sabl_rcnn.ADAPTER._replace(
    parts={
        "model_cfg.type": "CascadeRCNN",
        "model_cfg.roi_head.type": "CascadeRoIHead",
        "model_cfg.roi_head.bbox_head.0.type": "SABLHead",
    },
    fields=fields,
    losses=cascade_rcnn.losses(sabl_rcnn.LOSSES),
)

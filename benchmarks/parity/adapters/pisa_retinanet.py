"""mmdet's RetinaNet with PISA: RetinaNet with ISR-P, CARL and smooth L1."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import retinanet
from detlab.converters.tables import mmdet_pisa_retinanet


def fields(info: dict) -> dict:
    """Fields of `detectors.pisa_retinanet.PISARetinaNet`."""
    with configs.readers(info) as (model, train, test):
        head = configs.head(model, "PISARetinaHead", info)
        box = head.child("loss_bbox")
        return {
            **retinanet.all_but_losses(info, model, head, train, test),
            **configs.focal_loss(head.child("loss_cls")),
            "smooth_l1_beta": box.take("beta", 1.0),
            "box_weight": configs.loss(box, "SmoothL1Loss", weight=None),
            **configs.pisa(train),
        }


ADAPTER = retinanet.ADAPTER._replace(
    parts={
        **retinanet.ADAPTER.parts,
        "model_cfg.bbox_head.type": "PISARetinaHead",
        "model_cfg.bbox_head.loss_bbox.type": "SmoothL1Loss",
    },
    detector="pisa_retinanet",
    fields=fields,
    table=mmdet_pisa_retinanet.table,
    losses={**retinanet.ADAPTER.losses, "loss_carl": "loss/carl"},
    gradient_stops=(*retinanet.ADAPTER.gradient_stops, "losses/pisa.py"),
)

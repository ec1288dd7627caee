"""mmdet's Libra RetinaNet: RetinaNet with an FPN and a BFP, and balanced L1."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import retinanet
from detlab.converters.tables import mmdet_libra_retinanet


def fields(info: dict) -> dict:
    """Fields of `detectors.libra_retinanet.LibraRetinaNet`."""
    with configs.readers(info) as (model, train, test):
        head = configs.head(model, "RetinaHead", info)
        neck, balance = model.children("neck", 2)
        shared = retinanet.all_but_losses(info, model, head, train, test, neck)
        box = head.child("loss_bbox")
        return {
            **shared,
            **configs.bfp(balance, len(shared["strides"])),
            **configs.focal_loss(head.child("loss_cls")),
            **configs.balanced_l1(box),
            "box_weight": configs.loss(box, "BalancedL1Loss", weight=None),
        }


OF_RETINANET = {k: v for k, v in retinanet.ADAPTER.parts.items() if "neck" not in k}
ADAPTER = retinanet.ADAPTER._replace(
    parts={**OF_RETINANET, "model_cfg.bbox_head.loss_bbox.type": "BalancedL1Loss"},
    detector="libra_retinanet",
    fields=fields,
    table=mmdet_libra_retinanet.table,
)

"""mmdet's RetinaNet with GHM-C and GHM-R, whose bin counts are compared as buffers."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, retinanet
from detlab.converters.tables import mmdet_ghm


def fields(info: dict) -> dict:
    """Fields of `detectors.ghm.GHM`: those of RetinaNet, with two other losses."""
    with configs.readers(info) as (model, train, test):
        head = configs.head(model, "RetinaHead", info)
        cls, box = head.child("loss_cls"), head.child("loss_bbox")
        configs.loss(cls, "GHMC")
        cls.expect("use_sigmoid", True)
        return {
            **retinanet.all_but_losses(info, model, head, train, test),
            "cls_bins": cls.take("bins", 10),
            "cls_momentum": cls.take("momentum", 0.0),
            "box_bins": box.take("bins", 10),
            "box_momentum": box.take("momentum", 0.0),
            "box_mu": box.take("mu", 0.02),
            "box_weight": configs.loss(box, "GHMR", weight=None),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Those of RetinaNet; its normaliser is recorded too, although these losses do not use it."""
    positives = (results.targets["main"].status == 1).sum(1)
    normaliser = np.maximum(positives, 1).sum()
    metrics = {**results.metrics, "normaliser": normaliser}
    return retinanet.arrays(case, results._replace(metrics=metrics))


ADAPTER = retinanet.ADAPTER._replace(
    parts={
        **retinanet.ADAPTER.parts,
        "model_cfg.bbox_head.loss_cls.type": "GHMC",
        "model_cfg.bbox_head.loss_bbox.type": "GHMR",
    },
    detector="ghm",
    fields=fields,
    table=mmdet_ghm.table,
    arrays=arrays,
)

"""mmdet's RetinaNet with GHM-C and GHM-R, whose bin counts are compared as buffers."""

import copy

import numpy as np

from benchmarks import reference_configs
from benchmarks.parity_adapters import adapter
from benchmarks.parity_adapters import retinanet
from converters.tables import mmdet_ghm


def fields(info: dict) -> dict:
    """Fields of `detectors.ghm.GHM`: those of RetinaNet, with two other losses."""
    head = reference_configs.Reader(info["model_cfg"]["bbox_head"], f"case {info['name']}: head")
    cls, box = head.child("loss_cls"), head.child("loss_bbox")
    cls.expect("type", "GHMC")
    cls.expect("use_sigmoid", True)
    cls.expect("loss_weight", 1.0)
    box.expect("type", "GHMR")
    losses = {
        "cls_bins": cls.take("bins", 10),
        "cls_momentum": cls.take("momentum", 0.0),
        "box_bins": box.take("bins", 10),
        "box_momentum": box.take("momentum", 0.0),
        "box_mu": box.take("mu", 0.02),
        "box_weight": box.take("loss_weight", 1.0),
    }
    cls.finish()
    box.finish()
    plain = copy.deepcopy(info)
    plain["model_cfg"]["bbox_head"] |= {
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss"},
    }
    return retinanet.fields(plain) | losses


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Those of RetinaNet; its normaliser is recorded, although these losses do not use it."""
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

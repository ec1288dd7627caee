"""mmdet's CentripetalNet: CentripetalHead on a stacked hourglass network."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, cornernet
from detlab.converters.tables import mmdet_centripetalnet

_BOTH = ("guiding_shift", "guiding"), ("centripetal_shift", "centripetal")


def fields(info: dict) -> dict:
    """Fields of `detectors.centripetalnet.CentripetalNet`."""
    with configs.readers(info) as (model, _, test):
        head = configs.head(model, "CentripetalHead", info)
        head.expect("corner_emb_channels", 0)
        guiding, centripetal = (head.child(f"loss_{name}") for name, _ in _BOTH)
        return {
            **cornernet.of_corners(info, model, head, test),
            "guiding_weight": cornernet.smooth_l1(guiding),
            "centripetal_weight": cornernet.smooth_l1(centripetal),
            "max_center_distance": test.take("distance_threshold"),
        }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Raw maps of every stack, and their targets."""
    values = results.targets["corner"].values
    return {
        **cornernet.of_maps(case, results, ("heat", "heat"), ("off", "offset"), *_BOTH),
        **cornernet.of_targets(values, ("heatmap", "heat"), ("offset", "offset"), *_BOTH),
    }


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "CornerNet",
        "model_cfg.backbone.type": "HourglassNet",
        "model_cfg.bbox_head.type": "CentripetalHead",
    },
    detector="centripetalnet",
    fields=fields,
    table=mmdet_centripetalnet.table,
    arrays=arrays,
    losses={
        "det_loss": "loss/heat",
        "off_loss": "loss/offset",
        "guiding_loss": "loss/guiding",
        "centripetal_loss": "loss/centripetal",
    },
)

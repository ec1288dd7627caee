"""mmdet's CentripetalNet: CentripetalHead on a stacked hourglass network."""

import numpy as np

from benchmarks.parity import checks, configs
from benchmarks.parity.adapters import adapter, cornernet
from detlab import types
from detlab.converters.tables import mmdet_centripetalnet
from detlab.ops import boxes as boxes_lib

SIGMA = 0.5  # of the Gaussian of soft suppression, mmcv's default
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


def reproducible(case, recorded: list[types.Detections]) -> list[types.Detections]:
    """The recorded detections of each image whose corners are both peaks of the heatmaps.

    Where fewer than `corner_topk` cells are peaks, the reference fills up with other cells of score
    0, in the order in which torch.topk happens to return them.  Boxes from these cells are left
    out, and what soft suppression took because of them is given back to the others.
    """
    return [_from_peaks(case, i, found) for i, found in enumerate(recorded)]


def _from_peaks(case, image: int, found: types.Detections) -> types.Detections:
    kept = np.ones(len(found.scores), bool)
    for kind, corner in (("tl", found.boxes[:, :2]), ("br", found.boxes[:, 2:])):
        points, classes = _peaks(case, kind, image)
        near = np.abs(corner[:, None] - points).max(-1, initial=0) < checks.BOXES_PX
        kept &= (near & (found.labels[:, None] == classes)).any(1)
    scores = found.scores.copy()
    for i in np.flatnonzero(~kept):  # best first: each lowered the scores of its class after it
        iou = np.asarray(boxes_lib.pairwise_iou(found.boxes[i : i + 1], found.boxes[i + 1 :]))[0]
        same = found.labels[i + 1 :] == found.labels[i]
        scores[i + 1 :] *= np.where(same, np.exp(iou**2 / SIGMA), 1)
    best_first = np.argsort(-scores[kept], kind="stable")
    others = found._replace(scores=scores)
    return types.Detections(*(values[kept][best_first] for values in others))


def _peaks(case, kind: str, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] x, y px and classes [N] of all peaks of the last stack's recorded heatmap."""
    stack = case.info["model_cfg"]["backbone"]["num_stacks"] - 1
    heat, offset = (case.arrays[f"{kind}_{name}_{stack}"][image] for name in ("heat", "off"))
    _, height, width = heat.shape
    side = case.info["test_cfg"]["local_maximum_kernel"]
    around = np.pad(heat, ((0, 0), *[(side // 2, side // 2)] * 2), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(around, (side, side), axis=(1, 2))
    classes, rows, columns = np.nonzero(heat == windows.max((-2, -1)))
    canvas = case.arrays["image"].shape[2:]
    cell = canvas[1] / width, canvas[0] / height  # px
    points = (np.stack([columns, rows], -1) + offset[:, rows, columns].T) * cell
    return np.clip(points, 0, canvas[::-1]), classes


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
    reproducible=reproducible,
    losses={
        "det_loss": "loss/heat",
        "off_loss": "loss/offset",
        "guiding_loss": "loss/guiding",
        "centripetal_loss": "loss/centripetal",
    },
    gradient_stops=("heads/corner.py",),
)

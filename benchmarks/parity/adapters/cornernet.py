"""mmdet's CornerNet: CornerHead on a stacked hourglass network."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab import errors
from detlab.converters.tables import mmdet_cornernet

KINDS = {"tl": "top_left", "br": "bottom_right"}
TARGETS = "train_targets.bbox_head.get_targets.0"


def fields(info: dict) -> dict:
    """Fields of `detectors.cornernet.CornerNet`."""
    with configs.readers(info) as (model, _, test):
        head = configs.head(model, "CornerHead", info)
        head.expect("corner_emb_channels", 1, default=1)
        tags = head.child("loss_embedding")
        tags.expect("type", "AssociativeEmbeddingLoss")
        return {
            **of_corners(info, model, head, test),
            "pull_weight": tags.take("pull_weight"),
            "push_weight": tags.take("push_weight"),
            "max_tag_distance": test.take("distance_threshold"),
        }


def of_corners(
    info: dict, model: configs.Reader, head: configs.Reader, test: configs.Reader
) -> dict:
    """Fields of `detectors.cornernet.Corners`."""
    model.expect("type", "CornerNet")
    model.expect("neck", None)
    backbone = _hourglass(model.child("backbone"))
    head.expect("num_feat_levels", backbone["stacks"])
    heat = head.child("loss_heatmap")
    configs.loss(heat, "GaussianFocalLoss")
    heat.expect("alpha", 2.0)
    heat.expect("gamma", 4.0)
    nms = test.child("nms")
    nms.expect("type", "soft_nms")
    nms.expect("method", "gaussian")
    nms.skip("iou_threshold")  # no effect on the Gaussian form
    test.skip("score_thr")  # CornerHead does not use it
    return {
        **configs.inputs(info, model),
        **backbone,
        "norm": "batch" if info["batch_norm_in_train"]["batch_statistics"] else "stored",
        "offset_weight": smooth_l1(head.child("loss_offset")),
        "max_corners": test.take("corner_topk"),
        "peak_kernel": test.take("local_maximum_kernel"),
        "max_detections": test.take("max_per_img"),
    }


def smooth_l1(config: configs.Reader) -> float:
    """The weight of a SmoothL1Loss that bends at 1."""
    config.expect("beta", 1.0)
    return float(configs.loss(config, "SmoothL1Loss", weight=None))


def _hourglass(config: configs.Reader) -> dict:
    config.expect("type", "HourglassNet")
    channels = tuple(config.take("stage_channels"))
    config.expect("downsample_times", len(channels) - 1)
    config.expect("feat_channel", channels[0], default=256)  # channels that the heads read
    norm = config.child("norm_cfg")
    norm.expect("type", "BN")
    norm.expect("requires_grad", True)
    stacks = config.take("num_stacks")
    if stacks < 1:
        raise errors.UserError(f"{config.path}.num_stacks is {stacks}; detlab needs one or more.")
    return {"stacks": stacks, "channels": channels, "blocks": tuple(config.take("stage_blocks"))}


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Raw maps of every stack, and the targets: heatmaps, offsets, and the cells of each pair."""
    found = of_maps(case, results, ("heat", "heat"), ("off", "offset"), ("emb", "tag"))
    values = results.targets["corner"].values
    found |= of_targets(values, ("heatmap", "heat"), ("offset", "offset"))
    width = values["top_left_heat"].shape[2]
    for i, count in enumerate(case.info["gt_counts"]):
        for j in range(count):
            for k, corner in enumerate(KINDS.values()):
                row_column = divmod(values[f"{corner}_cells"][i, j], width)
                for axis, value in enumerate(row_column):
                    name = f"{TARGETS}.corner_embedding_{i}_{j}_{k}_{axis}"
                    found[name] = np.asarray(value)
    return found


def of_maps(case, results: adapter.Results, *names: tuple[str, str]) -> dict[str, np.ndarray]:
    """The raw maps of both kinds of corners; `names` are (there, here)."""
    found = {}
    for theirs, ours in KINDS.items():
        maps = getattr(results.outputs, ours)
        for kind, name in names:
            found |= adapter.maps(f"{theirs}_{kind}", getattr(maps, name))
    return adapter.with_training(found, case)


def of_targets(values: dict, *names: tuple[str, str]) -> dict[str, np.ndarray]:
    """The targets that are maps, of both kinds of corners; `names` are (there, here)."""
    return {
        f"{TARGETS}.{theirs}_{kind}": values[f"{ours}_{name}"].transpose(0, 3, 1, 2)
        for theirs, ours in (("topleft", "top_left"), ("bottomright", "bottom_right"))
        for kind, name in names
    }


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "CornerNet",
        "model_cfg.backbone.type": "HourglassNet",
        "model_cfg.bbox_head.type": "CornerHead",
    },
    detector="cornernet",
    fields=fields,
    table=mmdet_cornernet.table,
    arrays=arrays,
    losses={
        "det_loss": "loss/heat",
        "off_loss": "loss/offset",
        "pull_loss": "loss/pull",
        "push_loss": "loss/push",
    },
)

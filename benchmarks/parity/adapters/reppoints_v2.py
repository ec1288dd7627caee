"""RepPoints V2 as mmdetection-mini has it: RepPointsV2Head over an FPN, both with group norms."""

import numpy as np

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter
from detlab.converters.tables import mmdet_reppoints_v2


def fields(info: dict) -> dict:
    """Fields of `detectors.reppoints_v2.RepPointsV2`."""
    with configs.readers(info) as (model, train, test):
        model.expect("type", "SingleStageDetector")
        model.skip("pretrained")
        head, neck = configs.head(model, "RepPointsV2Head", info), model.child("neck")
        head.expect("transform_method", "exact_minmax", default="moment")
        head.expect("use_grid_points", False)
        head.expect("center_init", True)
        head.expect("first_kernel_size", 3)
        head.expect("kernel_size", 1)
        strides = tuple(head.take("point_strides", (8, 16, 32, 64, 128)))
        norms = [configs.group_norm(part.child("norm_cfg")) for part in (neck, head)]
        first = configs.training(train.child("init")).child("assigner")
        first.expect("type", "PointAssignerV2")
        heat = configs.training(train.child("heatmap")).child("assigner")
        heat.expect("type", "PointHMAssigner")
        heat.expect("gaussian_bump", True, default=False)
        return {
            **configs.inputs(info, model),
            **configs.resnet(model.child("backbone")),
            **configs.fpn(neck, 1, "on_input", len(strides)),
            **configs.equal(norms, head),
            **configs.tower(head),
            "shared_convs": head.take("shared_stacked_convs", 1),
            "pool_width": head.take("corner_dim", 64),
            "point_width": head.take("point_feat_channels", 256),
            "num_points": head.take("num_points", 9),
            "offset_gradient": head.take("gradient_mul", 0.1),
            "strides": strides,
            "base_scale": head.take("point_base_scale", 4),
            "point_scale": first.take("scale", 4),
            "points_per_object": first.take("pos_num", 3),
            **configs.atss(configs.training(train.child("refine")).child("assigner")),
            "min_overlap": heat.take("gaussian_iou", 0.7),
            **_losses(head),
            "candidates_per_level": test.take("nms_pre"),
            "keep_swapped": True,
            **_detections(test),
        }


def _losses(head: configs.Reader) -> dict:
    init, refine, heat, offset, semantic = (
        head.child(f"loss_{name}")
        for name in ("bbox_init", "bbox_refine", "heatmap", "offset", "sem")
    )
    found = configs.focal_loss(head.child("loss_cls"))
    semantic.expect("gamma", found["focal_gamma"], default=2.0)
    semantic.expect("alpha", found["focal_alpha"], default=0.25)
    heat.expect("alpha", 2.0)
    heat.expect("gamma", 4.0)
    beta = init.take("beta", 1.0)
    refine.expect("beta", beta, default=1.0)
    return {
        **found,
        "smooth_l1_beta": beta,
        "init_weight": configs.loss(init, "SmoothL1Loss", weight=None),
        "refine_weight": configs.loss(refine, "SmoothL1Loss", weight=None),
        "heat_weight": configs.loss(heat, "GaussianFocalLoss", weight=None),
        "offset_beta": offset.take("beta", 1.0),
        "offset_weight": configs.loss(offset, "SmoothL1Loss", weight=None),
        "semantic_weight": configs.loss(semantic, "SEPFocalLoss", weight=None),
    }


def _detections(test: configs.Reader) -> dict:
    """`configs.dense_test` with the key of mmdet 2.0 for the threshold of suppression."""
    test.expect("min_bbox_size", 0)
    nms = test.child("nms")
    nms.expect("type", "nms")
    return {
        "score_threshold": test.take("score_thr"),
        "nms_iou": nms.take("iou_thr"),
        "max_detections": test.take("max_per_img"),
    }


def arrays(case, results: adapter.Results) -> dict[str, np.ndarray]:
    """Feature maps, raw maps, and the items of `get_targets` and `get_hm_targets`."""
    outputs, targets = results.outputs, results.targets
    found = adapter.maps("fpn", outputs.features)
    for theirs, ours in (
        ("cls_out", outputs.cls_logits),
        ("pts_out_init", outputs.init_points),
        ("pts_out_refine", outputs.refine_points),
        ("hm_score", outputs.corner_logits),
        ("hm_offset", outputs.corner_offsets),
        ("sem_score", outputs.semantic_logits),
    ):
        found |= adapter.maps(theirs, ours)
    for call, stage in enumerate(("init", "refine")):
        of_stage = targets[stage]
        labels, background = adapter.object_labels(case, of_stage), case.info["num_classes"]
        items = adapter.delta_items(of_stage, labels, background, of_stage.values["boxes"])
        counts = [np.maximum((of_stage.status == x).sum(1), 1).sum() for x in (1, 0)]
        found |= _items(f"get_targets.{call}", items, counts, of_stage.level[0])
    values, items, counts = targets["verification"].values, [], []
    for kind in ("top_left", "bottom_right"):
        heat, offset = values[f"{kind}_heat"], values[f"{kind}_offset"]
        is_peak = heat == 1
        weights = np.repeat(is_peak[..., None].astype(np.float32), 2, axis=-1)
        # No image of the case has padding.
        items += [heat, offset, np.ones_like(heat), weights]
        counts += [np.maximum(x.sum(1), 1).sum() for x in (is_peak, ~is_peak)]
    return found | _items("get_hm_targets.0", items, counts, targets["init"].level[0])


def _items(call: str, items: list, counts: list, level: np.ndarray) -> dict[str, np.ndarray]:
    """What a method returns: items by level, then the numbers of positives and negatives."""
    name = f"train_targets.bbox_head.{call}"
    found = {f"{name}_{len(items) + i}": np.float32(x) for i, x in enumerate(counts)}
    for item, values in enumerate(items):
        found |= adapter.split_levels(f"{name}_{item}", values, level)
    return found


ADAPTER = adapter.Adapter(
    parts={
        "model_cfg.type": "SingleStageDetector",
        "model_cfg.bbox_head.type": "RepPointsV2Head",
    },
    detector="reppoints_v2",
    fields=fields,
    table=mmdet_reppoints_v2.table,
    arrays=arrays,
    losses={
        "loss_cls": "loss/cls",
        "loss_pts_init": "loss/init",
        "loss_pts_refine": "loss/refine",
        "loss_heatmap": "loss/heat",
        "loss_offset": "loss/offset",
        "loss_sem": "loss/semantic",
    },
    gradient_stops=("backbones/resnet.py", "heads/reppoints_v2.py", "ops/gradient.py"),
)

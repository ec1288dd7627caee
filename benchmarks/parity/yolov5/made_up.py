"""Made-up weights: raw heads, stages, decoding, detections, targets, losses and gradients."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import checks, runner
from benchmarks.parity.yolov5 import lines as lines_lib
from benchmarks.parity.yolov5 import model as model_lib
from benchmarks.parity.yolov5 import weights
from detlab import errors, types
from detlab.converters import mapping
from detlab.converters.readers import contents, npz_file
from detlab.detectors import yolov5
from detlab.ops import boxes as boxes_lib


def run(
    fixtures: pathlib.Path, name: str, info: dict, settings: runner.Settings
) -> list[checks.Line]:
    """The lines of a case whose weights are made by its rule."""
    arrays = npz_file.read(fixtures / f"{name}.npz").tensors
    hyp = info["loss"]["hyp"]
    for key, only in (("cls_pw", 1.0), ("obj_pw", 1.0), ("fl_gamma", 0.0)):
        if hyp[key] != only:
            raise errors.UserError(
                f"case {info['name']}: hyp.{key} is {hyp[key]}, and detlab has only {only}."
            )
    file = contents.Contents(
        "made up",
        weights.tensors(info),
        None,
        {},
        {"model.1.act": {"class": info["activation"]}},
    )
    images = arrays["images"]
    num_classes = info["heads"][0]["shape"][-1] - 5
    model = model_lib.Model(
        file,
        info["name"],
        anchor_sizes=tuple(
            tuple(zip(level[::2], level[1::2], strict=True)) for level in info["anchors_pixels"]
        ),
        max_detections=300,
        anchor_ratio=hyp["anchor_t"],
        box_gain=hyp.get("box", hyp.get("giou")),
        objectness_gain=hyp["obj"],
        class_gain=hyp["cls"] * 80 / num_classes,  # train.py's scaling is not in the case
        label_smoothing=hyp.get("label_smoothing", 0.0),
        summed_images=float(len(images)),
    )
    thresholds = _thresholds(arrays)
    compute = _program(model.module, thresholds, settings.compiler_options)
    found = jax.device_get(compute(model.variables, _batch(arrays)))

    lines = lines_lib.stages(info["stages"], found["stages"], model.module)
    for level, (raw, head) in enumerate(zip(found["raw"], info["heads"], strict=True)):
        step = head["raw_stride"]
        mine = raw[:, :, ::step, ::step]
        lines.append(checks.array_map(f"map raw{level}", mine, arrays[f"raw{level}"]))
        lines += lines_lib.statistics(f"head {level}", raw, head, ("mean", "rms", "max_abs"))
    boxes, objectness = arrays["decoded"][..., :4], arrays["decoded"][..., 4]
    lines.append(checks.array_map("decoded boxes", found["boxes"], boxes))
    lines.append(checks.array_map("decoded objectness", found["objectness"], objectness))
    for key in thresholds:
        theirs, mine = [], []
        for i, valid in enumerate(found[key].valid):
            rows = model_lib.listed(arrays[f"{key}_image{i}"])
            kept = solid(rows.boxes, rows.labels, model.module)
            theirs.append(types.Detections(*(values[kept] for values in rows)))
            # Dropped boxes took places in the reference.
            places = model.module.max_detections - (~kept).sum()
            best = np.flatnonzero(valid)[:places]
            mine.append(types.Detections(*(values[i][best] for values in found[key])))
        for line in checks.detections(mine, theirs):
            lines.append(line._replace(quantity=f"{key} {line.quantity}"))
    lines += lines_lib.targets(info, arrays, found, model.module)
    return lines + lines_lib.losses(info["loss"], found)


def _batch(arrays: Mapping[str, np.ndarray]) -> types.Batch:
    """The recorded images and objects, with one empty slot more than any image needs."""
    images, rows = arrays["images"], arrays["targets"]
    b, h, w, _ = images.shape
    of_image = rows[:, 0].astype(int)
    slots = np.bincount(of_image, minlength=b).max() + 1
    boxes, labels = np.zeros((b, slots, 4), np.float32), np.zeros((b, slots), np.int32)
    valid = np.zeros((b, slots), bool)
    for i in range(b):
        mine = rows[of_image == i]
        center, half = mine[:, 2:4], mine[:, 4:6] / 2
        boxes[i, : len(mine)] = np.concatenate([center - half, center + half], 1) * [w, h, w, h]
        labels[i, : len(mine)] = mine[:, 1]
        valid[i, : len(mine)] = True
    return types.Batch(
        images=images,
        boxes=boxes,
        labels=labels,
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.tile(np.int32([h, w]), (b, 1)),
        placement=np.tile(np.float32([1, 1, 0, 0]), (b, 1)),
        index=np.arange(b, dtype=np.int32),
        real=np.ones(b, bool),
    )


def _thresholds(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Prefix such as "det_0.001_0.65" -> (score threshold, IoU threshold)."""
    found = {}
    for name in arrays:
        if match := re.fullmatch(r"(det_([\d.]+)_([\d.]+))_image\d+", name):
            found[match[1]] = float(match[2]), float(match[3])
    return found


def solid(boxes, labels, module: yolov5.YOLOv5, of=np):
    """[...]: which boxes keep an area when the reference moves them to separate classes.

    Made-up weights make sides below the spacing of float32 there, which may vanish.  Two boxes
    without area have the IoU 0 / 0, with which the first suppresses all others of any class, so
    such boxes are dropped on both sides.
    """
    far = (model_lib.shift(module) * labels + of.abs(boxes).max(-1)).astype(np.float32)
    spacing = of.nextafter(far, np.float32(np.inf)) - far
    return (boxes[..., 2:] - boxes[..., :2]).min(-1) >= spacing


def _program(
    module: yolov5.YOLOv5,
    thresholds: Mapping[str, tuple[float, float]],
    compiler_options: Mapping | None,
):
    """Jitted (variables, batch) -> everything that is compared, in the reference's layouts."""

    def compute(variables, batch: types.Batch) -> dict[str, Any]:
        maps, captured = module.apply(
            variables,
            batch.images,
            False,
            method="maps",
            capture_intermediates=lambda module, method: method == "__call__",
            mutable=["intermediates"],
        )
        flat = mapping.flatten(captured["intermediates"])
        stages = {
            path.removesuffix("/__call__"): _summary(value[0])
            for path, value in flat.items()
            if path.count("/") == 2
        }
        canvas, raw = batch.images.shape[1:3], maps.predictions

        def loss(raw):
            return module.loss(batch, maps._replace(predictions=raw))

        (total, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(raw)
        xywh, objectness, _ = module.split(raw)
        boxes = boxes_lib.xyxy_to_cxcywh(module.boxes(xywh, module.grid(canvas)))
        scores = jax.nn.sigmoid(objectness)[..., None]
        detections = {}
        for key, (score, iou) in thresholds.items():
            of_key = module.clone(score_threshold=score, nms_iou=iou)
            candidates = of_key.candidates(maps, batch.image_size, canvas)
            kept = solid(candidates.boxes, candidates.labels, module, of=jnp)
            candidates = candidates._replace(valid=candidates.valid & kept)
            detections[key] = of_key.suppress(candidates)
        return {
            "stages": stages,
            "raw": [model_lib.by_anchor(module, x) for x in raw],
            "gradients": [model_lib.by_anchor(module, x) for x in gradients],
            "boxes": model_lib.head_by_head(module, boxes, raw),
            "objectness": model_lib.head_by_head(module, scores, raw)[..., 0],
            "entries": module.entries(batch),
            "labels": batch.labels,
            "total": total,
            "metrics": metrics,
            **detections,
        }

    return jax.jit(compute, compiler_options=compiler_options)


def _summary(x) -> dict:
    return {
        "mean": x.mean(),
        "rms": jnp.sqrt(jnp.square(x).mean()),
        "first": x[0, 0, 0, :4],
    }

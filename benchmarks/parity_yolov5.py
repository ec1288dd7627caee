"""Parity with YOLOv5: raw heads, stages, decoding, detections, targets, losses and their gradients.

Cases are those of `parity/yolo` with reference "ultralytics/yolov5": made-up weights by their rule,
or published ones on photographs and on a small part of COCO.  Which network a case is of is found
out as `converters.convert` does for a user's file.
"""

import collections
import hashlib
import math
import pathlib
import re
import types as python_types
from typing import Any, Mapping

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import parity_cases
from benchmarks import parity_checks
from benchmarks import parity_darknet
from detlab import errors
from detlab import evaluation
from detlab import types
from detlab.converters import mapping
from detlab.converters import target
from detlab.converters.readers import contents
from detlab.converters.readers import files
from detlab.converters.readers import npz_file
from detlab.converters.tables import yolov5 as yolov5_table
from detlab.data import coco as coco_data
from detlab.data import transforms
from detlab.detectors import yolov5
from detlab.metrics import coco as coco_metrics
from detlab.ops import boxes as boxes_lib
from detlab.ops import nms as nms_lib

GREY = (114, 114, 114)
SIDE, MULTIPLE = 640, 32  # px: the longer side of a letterboxed picture; of the border
# The files round recorded boxes to 0.01 px and scores to 1e-5.
LISTED_SCORES = parity_checks.SCORES + 1e-5


def knows(info: Mapping) -> bool:
    """Whether a case is of YOLOv5."""
    weights = info.get("weights")
    named = isinstance(weights, str) and weights.startswith("yolov5")
    return named or "ultralytics/yolov5" in str(info.get("reference"))


def lacks(folder: pathlib.Path, name: str, info: Mapping) -> str:
    """What detlab does not have that the case needs: nothing."""
    return ""


def run(
    folder: pathlib.Path,
    name: str,
    info: dict,
    folders: parity_cases.Folders,
    compiler_options: Mapping | None = None,
):
    """(lines, names of arrays that nothing is compared with)."""
    if "data" in info:  # as val.py does it ...
        model = _published(info, folders, compiler_options, multi_label=True, max_detections=300)
        return _data_set(model, info, folders), []
    arrays = npz_file.read(folder / f"{name}.npz").tensors
    if "images" in info:  # ... and as detect.py does it
        model = _published(info, folders, compiler_options, multi_label=False, max_detections=1000)
        return _photographs(model, info, arrays, folders), []
    return _made_up(info, arrays, compiler_options), []


class _Model:
    """A detector, its weights, and what it detects on one canvas after the other."""

    def __init__(
        self,
        file: contents.Contents,
        name: str,
        compiler_options: Mapping | None = None,
        **settings,
    ):
        found = yolov5_table.fields(file)
        fields = dict(num_classes=found.num_classes, norm="stored")
        fields |= found.certain | found.assumed | settings
        self.module = yolov5.YOLOv5(**fields)
        self.module.check()
        config = python_types.SimpleNamespace(detector="yolov5", model=fields)
        try:
            table = yolov5_table.table(fields)
            tree, _ = mapping.convert(file.tensors, table, target.shapes(config))
        except mapping.ConversionError as error:
            raise errors.UserError(f"case {name}: {error}") from error
        self.variables = tree
        self._predict = jax.jit(self._detect, compiler_options=compiler_options)

    def _detect(self, variables, images):
        size = jnp.tile(jnp.array(images.shape[1:3]), (len(images), 1))
        canvas = images.shape[1:3]
        maps = self.module.apply(variables, images, False, method="maps")
        xywh, objectness, _ = self.module.split(maps.predictions)
        boxes = self.module.boxes(xywh, self.module.grid(canvas))
        candidates = self.module.candidates(maps, size, canvas)
        found = self.module.suppress(candidates), _suppress_moved(candidates, self.module)
        return maps.predictions, (boxes, objectness), found

    def __call__(self, images: np.ndarray):
        """uint8 [1, H, W, 3] -> (raw maps, (boxes, objectness logits), detections).

        The last are those of the detector, and those with the reference's suppression.
        """
        raw, decoded, both = jax.device_get(self._predict(self.variables, images))
        both = [types.Detections(*(x[0][found.valid[0]] for x in found)) for found in both]
        return raw, decoded, both

    def on_picture(self, image: np.ndarray, canvas: tuple[int, int]) -> list[types.Detections]:
        """Of a picture [h, w, 3] of any size, through the letterbox of detect.py, in its own px.

        Boxes go back as in the reference, by one ratio for both sides and from a border that is not
        rounded; detlab's programs take the ratio of each rounded side, up to 0.2 px away.
        """
        height, width = image.shape[:2]
        record = {
            "image": image,
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
            "ignore": np.zeros(0, bool),
            "area": np.zeros(0, np.float32),
            "index": 0,
        }
        record = transforms.letterbox(record, *canvas, GREY, "half_even")
        both = self(record["image"][None])[2]
        ratio = min(canvas[0] / height, canvas[1] / width)
        border = np.array(canvas[::-1]) - np.array([width, height]) * ratio
        limits, shift = [width, height] * 2, np.tile(border / 2, 2)
        return [
            found._replace(boxes=np.clip((found.boxes - shift) / ratio, 0, limits))
            for found in both
        ]


def _suppress_moved(candidates: types.Detections, module: yolov5.YOLOv5) -> types.Detections:
    """Suppression that tells classes apart as the reference does, by moving each farther.

    That leaves float32 0.06 px at class 79 of release 7.0, and decides otherwise where an overlap
    is so near to the threshold: 2 of 4177 times on `coco_mini`.
    """

    def one_image(boxes, scores, labels, valid):
        moved = boxes + (_shift(module) * labels)[:, None]
        indices, keep = nms_lib.nms(moved, scores, valid, module.nms_iou, module.max_detections)
        kept = [nms_lib.take(values, indices, keep) for values in (boxes, scores, labels)]
        return *kept, keep

    return types.Detections(*jax.vmap(one_image)(*candidates))


def _shift(module: yolov5.YOLOv5) -> float:
    """px by which the reference moves each class: of release 3.0, and of 7.0."""
    return 4096.0 if module.block == "csp" else 7680.0


# ------------------------------------------------------------------------------------------------
# Made-up weights


def _made_up(
    info: dict, arrays: Mapping[str, np.ndarray], compiler_options: Mapping | None
) -> list[parity_checks.Line]:
    hyp = info["loss"]["hyp"]
    for key, only in (("cls_pw", 1.0), ("obj_pw", 1.0), ("fl_gamma", 0.0)):
        if hyp[key] != only:
            raise errors.UserError(
                f"case {info['name']}: hyp.{key} is {hyp[key]}, and detlab has {only} alone."
            )
    file = contents.Contents(
        "made up",
        tensors(info),
        None,
        {},
        {"model.1.act": {"class": info["activation"]}},
    )
    images = arrays["images"]
    num_classes = info["heads"][0]["shape"][-1] - 5
    model = _Model(
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
    compute = _program(model.module, thresholds, compiler_options)
    found = jax.device_get(compute(model.variables, _batch(arrays)))

    lines = _stages(info["stages"], found["stages"], model.module)
    for level, (raw, head) in enumerate(zip(found["raw"], info["heads"])):
        step = head["raw_stride"]
        mine = raw[:, :, ::step, ::step]
        lines.append(parity_checks.array_map(f"map raw{level}", mine, arrays[f"raw{level}"]))
        lines += _statistics(f"head {level}", raw, head, ("mean", "rms", "max_abs"))
    boxes, objectness = arrays["decoded"][..., :4], arrays["decoded"][..., 4]
    lines.append(parity_checks.array_map("decoded boxes", found["boxes"], boxes))
    lines.append(parity_checks.array_map("decoded objectness", found["objectness"], objectness))
    for key in thresholds:
        theirs, mine = [], []
        for i, valid in enumerate(found[key].valid):
            rows = _rows(arrays[f"{key}_image{i}"])
            solid = _solid(rows.boxes, rows.labels, model.module)
            theirs.append(types.Detections(*(values[solid] for values in rows)))
            # What is left out has taken places in the reference.
            places = model.module.max_detections - (~solid).sum()
            best = np.flatnonzero(valid)[:places]
            mine.append(types.Detections(*(values[i][best] for values in found[key])))
        for line in parity_checks.detections(mine, theirs):
            lines.append(line._replace(quantity=f"{key} {line.quantity}"))
    return lines + _targets(info, arrays, found, model.module) + _losses(info["loss"], found)


def tensors(info: dict) -> dict[str, np.ndarray]:
    """The state dict of a case by its rule, without what is left as built."""
    rule = info["weights"]
    made = {}
    for key, shape in info["state_dict"]:
        name = key.rpartition(".")[2]
        if name in ("num_batches_tracked", "anchors", "anchor_grid"):
            continue
        made[key] = _tensor(
            key,
            tuple(shape),
            rule["seed"],
            info["heads"][0]["shape"][-1],
            rule["head_gain"],
            rule.get("conv_gain", 2.3),
        )
    return made


def _tensor(key, shape, seed, per_anchor, head_gain, conv_gain) -> np.ndarray:
    """One array: the last part of its name, and for convolutions the inputs, decide the range."""
    name, count = key.rpartition(".")[2], math.prod(shape)
    is_head = re.fullmatch(r"model\.\d+\.m\.\d+\.(weight|bias)", key)
    if name == "bias" and is_head:
        value = parity_darknet.uniform(key, count, seed, -0.5, 0.5).reshape(-1, per_anchor)
        value[:, 4] -= np.float32(4)
        value[:, 5:] -= np.float32(2)
        return value.reshape(-1)
    if name == "running_mean":
        low, high = -0.1, 0.1
    elif name == "running_var":
        low, high = 0.5, 1.5
    elif name == "bias":
        low, high = -0.3, 0.3
    elif len(shape) == 1:  # of a norm; those that end a residual branch are small
        damped = 0.1 if re.search(r"\.m\.\d+\.cv2\.bn\.weight$", key) else 1.0
        low, high = 0.8 * damped, 1.2 * damped
    else:
        gain = head_gain if is_head else conv_gain
        high = float(np.sqrt(3.0 * gain / (count // shape[0])))
        low = -high
    return parity_darknet.uniform(key, count, seed, low, high).reshape(shape)


def _batch(arrays: Mapping[str, np.ndarray]) -> types.Batch:
    """The recorded images and objects, with an empty slot more than any image needs."""
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


def _object_rows(targets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[B, G]: which row of the recorded objects is in each slot of `_batch`."""
    rows = np.full(shape, -1)
    for i in range(shape[0]):
        mine = np.flatnonzero(targets[:, 0] == i)
        rows[i, : len(mine)] = mine
    return rows


def _thresholds(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Prefix such as "det_0.001_0.65" -> (score threshold, IoU threshold)."""
    found = {}
    for name in arrays:
        if match := re.fullmatch(r"(det_([\d.]+)_([\d.]+))_image\d+", name):
            found[match[1]] = float(match[2]), float(match[3])
    return found


def _solid(boxes, labels, module: yolov5.YOLOv5, of=np):
    """[...]: which boxes keep an area when the reference moves them to tell classes apart.

    Sides below the spacing of float32 there, as made-up weights make them, may vanish.  Two boxes
    without area have the IoU 0 / 0, by which the first takes away all others, of any class, so
    these are compared on neither side.
    """
    far = (_shift(module) * labels + of.abs(boxes).max(-1)).astype(np.float32)
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
            solid = _solid(candidates.boxes, candidates.labels, module, of=jnp)
            candidates = candidates._replace(valid=candidates.valid & solid)
            detections[key] = of_key.suppress(candidates)
        return {
            "stages": stages,
            "raw": [_by_anchor(module, x) for x in raw],
            "gradients": [_by_anchor(module, x) for x in gradients],
            "boxes": _head_by_head(module, boxes, raw),
            "objectness": _head_by_head(module, scores, raw)[..., 0],
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


def _by_anchor(module, x):
    """[B, Hl, Wl, A * D] -> [B, A, Hl, Wl, D]."""
    x = x.reshape(*x.shape[:3], module.anchors_per_cell, -1)
    return x.transpose(0, 3, 1, 2, 4)


def _head_by_head(module, rows, maps):
    """Rows [B, N, D] by cell, then anchor -> by anchor, then cell, within each level."""
    ends = np.cumsum([x.shape[1] * x.shape[2] * module.anchors_per_cell for x in maps])
    parts = jnp.split(rows, ends[:-1], axis=1)
    parts = [
        _by_anchor(module, part.reshape(*x.shape[:3], -1)).reshape(*part.shape)
        for part, x in zip(parts, maps)
    ]
    return jnp.concatenate(parts, axis=1)


def _stages(recorded: Mapping, found: Mapping, module) -> list[parity_checks.Line]:
    """Mean, root mean square and first values of what every module with weights puts out."""
    known = yolov5_table.numbers(len(module.strides), module.pool)
    paths = {f"backbone/{name}": number for name, number in known.backbone.items()}
    paths |= {f"neck/{name}": number for name, number in known.neck.items()}
    lines = []
    for path, number in sorted(paths.items(), key=lambda item: item[1]):
        mine, theirs = found[path], recorded[str(number)]
        lines += _statistics(f"stage {number} {path}", mine, theirs, ("mean", "rms"))
        largest = max(np.abs(theirs["first"]).max(), theirs["rms"])
        error = np.abs(mine["first"] - np.array(theirs["first"])).max() / largest
        lines.append(parity_checks.Line(f"stage {number} {path} first", error, parity_checks.MAPS))
    return lines


def _statistics(name: str, values, recorded: Mapping, keys) -> list[parity_checks.Line]:
    """Figures of an array, or given ones, as parts of the recorded root mean square."""
    if not isinstance(values, Mapping):
        values = values.astype(np.float64)
        magnitude = np.abs(values)
        values = {
            "mean": values.mean(),
            "rms": np.sqrt(np.square(values).mean()),
            "max_abs": magnitude.max(),
            "l1": magnitude.sum(),
            "l2": np.sqrt(np.square(values).sum()),
        }
    unit = recorded.get("rms")
    return [
        parity_checks.Line(
            f"{name} {key}",
            float(abs(values[key] - recorded[key]) / (unit or recorded[key])),
            parity_checks.MAPS if unit else parity_checks.FIGURES,
        )
        for key in keys
    ]


def _rows(rows: np.ndarray) -> types.Detections:
    """[K, 6] x1, y1, x2, y2, score, class."""
    labels = rows[:, 5].astype(int)
    return types.Detections(rows[:, :4], rows[:, 4], labels, np.ones(len(rows), bool))


def _targets(info, arrays, found, module) -> list[parity_checks.Line]:
    """The entries of every level in the order of `build_targets`, and their gradients."""
    rows = _object_rows(arrays["targets"], found["labels"].shape)
    lines = []
    for level in range(len(module.strides)):
        entries = jax.tree.map(lambda x, level=level: x[:, level], found["entries"])
        sizes = np.array(module.anchor_sizes[level], np.float32) / module.strides[level]
        image, entry = np.nonzero(entries.valid)
        # By neighbour and anchor, and then in the order of the recorded objects.
        objects = rows[image, entries.matched[image, entry]]
        order = np.lexsort((objects, entry // rows.shape[1]))
        image, entry = image[order], entry[order]
        of = {name: values[image, entry] for name, values in entries._asdict().items()}
        labels = found["labels"][image, of["matched"]]
        mine = np.stack([image, of["anchor"], of["row"], of["column"], labels], axis=1)
        theirs, name = arrays[f"assign{level}"], f"assign{level}"
        counts = [len(theirs), info["loss"]["assigned"][level]]
        lines.append(
            parity_checks.Line(f"targets {name} count", float(np.ptp([len(mine), *counts])), 0.0)
        )
        if len(mine) != len(theirs):
            continue
        lines.append(parity_checks.decision(f"targets {name}", mine, theirs))
        lines.append(parity_checks.target(f"targets {name}_box", of["xywh"], arrays[f"{name}_box"]))
        anchors = sizes[of["anchor"]]
        lines.append(
            parity_checks.target(f"targets {name}_anchor", anchors, arrays[f"{name}_anchor"])
        )
        gradient = found["gradients"][level][image, of["anchor"], of["row"], of["column"]]
        theirs = arrays[f"{name}_grad"]
        line = parity_checks.array_map(
            f"gradient {name}_grad", gradient[:, : theirs.shape[1]], theirs
        )
        lines.append(line)
    return lines


def _losses(recorded: Mapping, found: Mapping) -> list[parity_checks.Line]:
    images = len(found["labels"])  # by which the total is multiplied
    names = {"box": "loss/box", "obj": "loss/objectness", "cls": "loss/cls"}
    lines = [
        parity_checks.figure(f"loss {key}", found["metrics"][name] / images, recorded[key])
        for key, name in names.items()
    ]
    lines.append(parity_checks.figure("loss sum", found["total"] / images, recorded["sum"]))
    lines.append(parity_checks.figure("loss total", found["total"], recorded["total_times_batch"]))
    for level, theirs in enumerate(recorded["gradient_of_total_by_head"]):
        name = f"gradient of head {level}"
        lines += _statistics(name, found["gradients"][level], theirs, ("l1", "l2", "max_abs"))
    return lines


# ------------------------------------------------------------------------------------------------
# Published weights


def _published(
    info: dict, folders: parity_cases.Folders, compiler_options: Mapping | None, **settings
) -> _Model:
    path = folders.weights / info["weights"]
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if digest != info.get("sha256", digest):
        raise errors.UserError(f"{path} has SHA-256 {digest}, and the case wants {info['sha256']}.")
    return _Model(
        files.read(path),
        info["weights"],
        compiler_options,
        score_threshold=info["conf"],
        nms_iou=info.get("iou", info.get("nms_iou")),
        **settings,
    )


def _canvas(height: int, width: int) -> tuple[int, int]:
    """The letterbox of a picture: its longer side 640 px, the other up to a multiple of 32."""
    sides = transforms.letterbox_sides((height, width), (SIDE, SIDE), "half_even")
    return tuple(MULTIPLE * math.ceil(side / MULTIPLE) for side in sides)


def _read(path: pathlib.Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise errors.UserError(f"{path} cannot be read.")
    return np.ascontiguousarray(image[..., ::-1])


def _photographs(model: _Model, info: dict, arrays, folders) -> list[parity_checks.Line]:
    """One picture as it entered the network, and detections on all from their files."""
    npz = info["npz"]
    raw, (boxes, objectness), found = model(arrays["image"][None])
    lines = []
    for level, step in enumerate(npz["raw_strides"]):
        mine = np.asarray(_by_anchor(model.module, raw[level]))[:, :, ::step, ::step]
        lines.append(parity_checks.array_map(f"map raw{level}", mine, arrays[f"raw{level}"]))
    boxes = boxes_lib.xyxy_to_cxcywh(jnp.asarray(boxes))
    scores = jax.nn.sigmoid(jnp.asarray(objectness))[..., None]
    decoded = arrays["decoded"]
    for name, mine, theirs in (
        ("boxes", boxes, decoded[:, :4]),
        ("objectness", scores, decoded[:, 4:5]),
    ):
        mine = np.asarray(_head_by_head(model.module, mine, raw))[0]
        lines.append(parity_checks.array_map(f"decoded {name}", mine, theirs))
    lines += parity_checks.detections(found[:1], [_rows(arrays["detections"])])
    for name, recorded in info["images"].items():
        image = _read(folders.images / name)
        found = model.on_picture(image, tuple(recorded["input_hw"]))[:1]
        rows = [[*d["xyxy"], d["score"], d["class"]] for d in recorded["detections"]]
        theirs = _rows(np.array(rows, np.float64).reshape(-1, 6))
        for line in parity_checks.detections(found, [theirs], scores=LISTED_SCORES):
            lines.append(line._replace(quantity=f"{name} {line.quantity}"))
    return lines


def _data_set(model: _Model, info: dict, folders) -> list[parity_checks.Line]:
    """Detections on every image of a data set in COCO's form, and COCO's twelve figures.

    The detections are compared with the reference's suppression; the figures are of detlab's own.
    """
    root = folders.data / info["data"]
    source = coco_data.Coco(root / "val2017", root / "annotations" / "instances_val2017.json")
    by_canvas = collections.defaultdict(list)  # one after the other, as each is a program
    for i in range(len(source)):
        by_canvas[_canvas(*source.size(i))].append(i)
    own, found = {}, {}
    for canvas, indices in by_canvas.items():
        for i in indices:
            name = source.image_id(i)
            own[name], found[name] = model.on_picture(source[i]["image"], canvas)

    # Labels of the published weights are the 80 classes in the order of their ids, as here.
    ids = list(source.category_ids)
    recorded = {name: [] for name in found}
    for d in info["detections"]:
        x, y, w, h = d["bbox"]
        row = [x, y, x + w, y + h, d["score"], ids.index(d["category_id"])]
        recorded[d["image_id"]].append(row)
    theirs = [_rows(np.array(rows, np.float64).reshape(-1, 6)) for rows in recorded.values()]
    lines = parity_checks.detections(list(found.values()), theirs, scores=LISTED_SCORES)
    predictions = [
        {
            "image_id": source.image_id(i),
            "boxes": own[source.image_id(i)].boxes.astype(np.float32),
            "scores": own[source.image_id(i)].scores,
            "labels": own[source.image_id(i)].labels,
        }
        for i in range(len(source))
    ]
    figures = coco_metrics.evaluate(
        evaluation.ground_truth(source), predictions, source.class_names
    )
    for name, value in info["pycocotools"].items():
        mine = figures[re.sub(r"AR_(\d)", r"AR\1", name)]
        lines.append(parity_checks.figure(f"figure {name}", mine, value))
    return lines

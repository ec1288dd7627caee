"""Published weights on photographs, as the reference's detect.py runs them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import checks, runner
from benchmarks.parity.yolov5 import model as model_lib
from detlab.converters.readers import npz_file
from detlab.ops import boxes as boxes_lib


def run(
    fixtures: pathlib.Path, name: str, info: dict, settings: runner.Settings
) -> list[checks.Line]:
    """Maps of one recorded network input, and detections on all photographs from their files."""
    arrays = npz_file.read(fixtures / f"{name}.npz").tensors
    model = model_lib.published(info, settings, multi_label=False, max_detections=1000)
    npz = info["npz"]
    raw, (boxes, objectness), found = model(arrays["image"][None])
    lines = []
    for level, step in enumerate(npz["raw_strides"]):
        mine = np.asarray(model_lib.by_anchor(model.module, raw[level]))[:, :, ::step, ::step]
        lines.append(checks.array_map(f"map raw{level}", mine, arrays[f"raw{level}"]))
    boxes = boxes_lib.xyxy_to_cxcywh(jnp.asarray(boxes))
    scores = jax.nn.sigmoid(jnp.asarray(objectness))[..., None]
    decoded = arrays["decoded"]
    for name, mine, theirs in (
        ("boxes", boxes, decoded[:, :4]),
        ("objectness", scores, decoded[:, 4:5]),
    ):
        mine = np.asarray(model_lib.head_by_head(model.module, mine, raw))[0]
        lines.append(checks.array_map(f"decoded {name}", mine, theirs))
    lines += checks.detections(found[:1], [model_lib.listed(arrays["detections"])])
    for name, recorded in info["images"].items():
        image = model_lib.read_picture(settings.folders.images / name)
        found = model.on_picture(image, tuple(recorded["input_hw"]))[:1]
        rows = [[*d["xyxy"], d["score"], d["class"]] for d in recorded["detections"]]
        theirs = model_lib.listed(rows)
        for line in checks.detections(found, [theirs], scores=model_lib.LISTED_SCORES):
            lines.append(line._replace(quantity=f"{name} {line.quantity}"))
    return lines

"""Lines of cases with made-up weights: stages, targets, losses and their gradients."""

from collections.abc import Mapping

import jax
import numpy as np

from benchmarks.parity import checks
from detlab.converters.tables import yolov5 as yolov5_table


def stages(recorded: Mapping, found: Mapping, module) -> list[checks.Line]:
    """Mean, root mean square and first values of the output of every module with weights."""
    known = yolov5_table.numbers(len(module.strides), module.pool)
    paths = {f"backbone/{name}": number for name, number in known.backbone.items()}
    paths |= {f"neck/{name}": number for name, number in known.neck.items()}
    lines = []
    for path, number in sorted(paths.items(), key=lambda item: item[1]):
        mine, theirs = found[path], recorded[str(number)]
        lines += statistics(f"stage {number} {path}", mine, theirs, ("mean", "rms"))
        largest = max(np.abs(theirs["first"]).max(), theirs["rms"])
        error = np.abs(mine["first"] - np.array(theirs["first"])).max() / largest
        lines.append(checks.Line(f"stage {number} {path} first", error, checks.MAPS))
    return lines


def statistics(name: str, values, recorded: Mapping, keys) -> list[checks.Line]:
    """Figures of an array, or given figures, relative to the recorded root mean square."""
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
        checks.Line(
            f"{name} {key}",
            float(abs(values[key] - recorded[key]) / (unit or recorded[key])),
            checks.MAPS if unit else checks.FIGURES,
        )
        for key in keys
    ]


def targets(info, arrays, found, module) -> list[checks.Line]:
    """The entries of every level in the order of `build_targets`, and their gradients."""
    rows = _object_rows(arrays["targets"], found["labels"].shape)
    lines = []
    for level in range(len(module.strides)):
        entries = jax.tree.map(lambda x, level=level: x[:, level], found["entries"])
        sizes = np.array(module.anchor_sizes[level], np.float32) / module.strides[level]
        image, entry = np.nonzero(entries.valid)
        # Sorted by neighbour and anchor, then in the order of the recorded objects.
        objects = rows[image, entries.matched[image, entry]]
        order = np.lexsort((objects, entry // rows.shape[1]))
        image, entry = image[order], entry[order]
        of = {name: values[image, entry] for name, values in entries._asdict().items()}
        labels = found["labels"][image, of["matched"]]
        mine = np.stack([image, of["anchor"], of["row"], of["column"], labels], axis=1)
        theirs, name = arrays[f"assign{level}"], f"assign{level}"
        counts = [len(theirs), info["loss"]["assigned"][level]]
        lines.append(checks.Line(f"targets {name} count", float(np.ptp([len(mine), *counts])), 0.0))
        if len(mine) != len(theirs):
            continue
        lines.append(checks.decision(f"targets {name}", mine, theirs))
        lines.append(checks.target(f"targets {name}_box", of["xywh"], arrays[f"{name}_box"]))
        anchors = sizes[of["anchor"]]
        lines.append(checks.target(f"targets {name}_anchor", anchors, arrays[f"{name}_anchor"]))
        gradient = found["gradients"][level][image, of["anchor"], of["row"], of["column"]]
        theirs = arrays[f"{name}_grad"]
        line = checks.array_map(f"gradient {name}_grad", gradient[:, : theirs.shape[1]], theirs)
        lines.append(line)
    return lines


def losses(recorded: Mapping, found: Mapping) -> list[checks.Line]:
    """The parts of the loss, and its gradients with respect to the raw maps."""
    images = len(found["labels"])  # a factor of the total
    names = {"box": "loss/box", "obj": "loss/objectness", "cls": "loss/cls"}
    lines = [
        checks.figure(f"loss {key}", found["metrics"][name] / images, recorded[key])
        for key, name in names.items()
    ]
    lines.append(checks.figure("loss sum", found["total"] / images, recorded["sum"]))
    lines.append(checks.figure("loss total", found["total"], recorded["total_times_batch"]))
    for level, theirs in enumerate(recorded["gradient_of_total_by_head"]):
        name = f"gradient of head {level}"
        lines += statistics(name, found["gradients"][level], theirs, ("l1", "l2", "max_abs"))
    return lines


def _object_rows(targets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[B, G]: which row of the recorded objects is in each slot of the batch."""
    rows = np.full(shape, -1)
    for i in range(shape[0]):
        mine = np.flatnonzero(targets[:, 0] == i)
        rows[i, : len(mine)] = mine
    return rows

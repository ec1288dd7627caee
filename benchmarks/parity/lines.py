"""The lines of an mmdet case: every recorded quantity compared with detlab's."""

import math
import re
import types as python_types
from collections.abc import Mapping

import numpy as np

from benchmarks.parity import cases, checks, runner, weights
from benchmarks.parity.adapters import adapter as adapter_lib
from detlab import types
from detlab.converters import mapping

# Inputs of a case, and its detections, which have their own lines.
_NO_MAPS = re.compile(r"image|gt_.*|det_(boxes|scores|labels)_\d+")


def compare(
    case: cases.Case,
    adapter: adapter_lib.Adapter,
    converted: weights.Converted,
    results: adapter_lib.Results,
) -> runner.Compared:
    """The line of every recorded quantity, and the arrays that need no line."""
    lines = [
        checks.Line(
            f"weights {path}", math.inf, 0.0, "not filled by the table, left as initialised"
        )
        for path in converted.left
        if path.startswith("params/")  # state may belong to detlab alone
    ]
    arrays = adapter.arrays(case, results)
    absent, predicted = adapter.not_compared, adapter.predicted
    found, not_compared = of_arrays(case, arrays, absent, predicted, adapter.readable(case))
    lines += found
    lines += of_losses(case, adapter.losses, results)
    if results.gradients is not None:
        lines += _of_gradients(case, converted, results.gradients)
    lines += _of_buffers(case, converted.table, results.state)
    lines += of_extra(case, adapter.extra, results.state)
    mine, theirs = _detections(case, results.detections)
    kept = adapter.reproducible(case, theirs)
    left_out = sum(len(x.scores) for x in theirs) - sum(len(x.scores) for x in kept)
    count, *others = checks.detections(mine, kept, case.info["drift"]["detections"])
    note = f"{left_out} recorded detections come from ties and are left out" if left_out else ""
    lines += [count._replace(note=count.note or note), *others]
    return lines, not_compared


def of_arrays(
    case,
    mine: Mapping[str, np.ndarray],
    may_be_absent: tuple[str, ...],
    predicted: tuple[str, ...] = (),
    readable: Mapping[str, np.ndarray] = python_types.MappingProxyType({}),
) -> runner.Compared:
    """The lines of recorded arrays.

    Args:
      case: with its arrays.
      mine: detlab's whole arrays, by the same names.
      may_be_absent, predicted: regexes of names, see `Adapter`.
      readable: for some arrays, the mask of the entries that are compared.
    """
    # `outputs` come from prediction.  With live norms the training maps differ and show only in
    # the losses.
    live_norms = case.info["batch_norm_in_train"]["batch_statistics"]
    lines, not_compared = [], []
    for name, theirs in case.arrays.items():
        if _NO_MAPS.fullmatch(name):
            continue
        other_map = live_norms and name.startswith("train_") and name.removeprefix("train_") in mine
        permitted = other_map or any(re.fullmatch(pattern, name) for pattern in may_be_absent)
        if name not in mine and permitted:
            not_compared.append(name)
            continue
        kind = "assignment" if name.startswith("train_assign.") else "map"
        is_map = any(re.fullmatch(pattern, name) for pattern in predicted)
        kind = "targets" if name.startswith("train_targets.") and not is_map else kind
        kind = "neck" if re.match(r"(train_|image\d+_)?fpn_", name) else kind
        quantity = f"{kind} {name}"
        if name not in mine:
            note = "the adapter gives nothing to compare with"
            lines.append(checks.Line(quantity, math.inf, 0.0, note))
            continue
        try:
            values = case.as_stored(name, np.asarray(mine[name]))
        except ValueError as error:
            lines.append(checks.Line(quantity, math.inf, 0.0, str(error)))
            continue
        if name in readable:
            values, theirs = (np.where(readable[name], x, 0) for x in (values, theirs))
        if np.issubdtype(theirs.dtype, np.integer):
            lines.append(checks.decision(quantity, values, theirs))
        elif kind == "targets":
            lines.append(checks.target(quantity, values, theirs))
        else:
            lines.append(checks.array_map(quantity, values, theirs))
    return lines, not_compared


def of_losses(case, names: Mapping[str, str], results) -> list[checks.Line]:
    """The lines of the losses and of the total; `names` maps a loss to its metric."""
    drift = case.info["drift"]["losses"]
    lines = []
    for name, theirs in case.info["losses"].items():
        mine = results.metrics.get(names.get(name), math.nan)
        lines.append(checks.loss(f"loss {name}", mine, theirs, drift.get(name, 0.0)))
    # Other figures recorded with them, such as `acc`, are not in the total.
    worst = max((value for name, value in drift.items() if "loss" in name), default=0.0)
    theirs = case.info["total_loss"]
    return [*lines, checks.loss("loss total", results.total_loss, theirs, worst)]


def _of_gradients(case, converted: weights.Converted, gradients) -> list[checks.Line]:
    named = mapping.reverse({"params": gradients}, converted.table)
    norms, dots, drift = (case.info[key] for key in ("grad_norms", "grad_dots", "grad_drift"))
    largest, lines = max(norms.values(), default=0.0), []
    for key, norm in norms.items():
        mine = named.get(key, np.full_like(converted.tensors[key], np.nan))
        drifts = (drift[of][key] for of in ("norms", "dots", "vectors"))
        recorded = checks.Gradient(norm, dots[key], *drifts)
        lines += checks.gradient(key, mine, converted.tensors[key], recorded, largest)
    for group in ("frozen", "unused"):
        moved = [key for key in case.info[group] if key in named and named[key].any()]
        note = f"with a gradient: {', '.join(moved)}" if moved else ""
        lines.append(checks.Line(f"gradient of {group}", float(len(moved)), 0.0, note))
    return lines


def _of_buffers(case, table: mapping.Table, state) -> list[checks.Line]:
    """The lines of buffers that the step changed, by their norms."""
    norms = case.info["buffers_after_train"]
    named = mapping.reverse(state, table) if norms else {}
    return [
        checks.figure(f"buffer {key}", np.linalg.norm(named.get(key, np.nan)), norm)
        for key, norm in norms.items()
    ]


def of_extra(case, names: Mapping[str, str], state: Mapping) -> list[checks.Line]:
    """The lines of other state after the step; `names` maps it to a leaf of `state`."""
    leaves = mapping.flatten(state)
    return [
        checks.figure(f"state {name}", leaves.get(names.get(name), math.nan), theirs)
        for name, theirs in case.info.get("extra", {}).items()
    ]


def _detections(case, found) -> tuple[list[types.Detections], list[types.Detections]]:
    """Mine and theirs of each image, without empty rows."""
    mine, theirs = [], []
    for i, valid in enumerate(found.valid):
        mine.append(types.Detections(*(values[i][valid] for values in found)))
        boxes, scores, labels = (case.arrays[f"det_{x}_{i}"] for x in ("boxes", "scores", "labels"))
        theirs.append(types.Detections(boxes, scores, labels, np.ones(len(scores), bool)))
    return mine, theirs

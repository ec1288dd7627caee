"""Pictures of an error analysis (`detlab.metrics.errors.results`), drawn without a window."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_NAMED = 40  # classes whose names fit beside a matrix


def kinds(results: Mapping[str, Any], title: str) -> Any:
    """A matplotlib Figure: what each kind of error costs in AP50, by size of the object or box."""
    figure, (left, right) = _figure(title, 10, 4.2, columns=2)
    of_all = results["kinds"]["all"]
    names = list(of_all)[:6]
    sizes = [size for size in results["kinds"] if size != "all"]
    base = np.zeros(len(names))
    for size in sizes:
        cost = np.array([results["kinds"][size][name]["dAP"] for name in names])
        left.bar(names, np.maximum(cost, 0), bottom=base, label=size)
        base += np.maximum(cost, 0)
    left.plot(names, [of_all[name]["dAP"] for name in names], "kD", label="all sizes together")
    left.set_ylabel("AP50 that mending them would add")
    left.legend(fontsize=8)
    bars = right.bar(names, [of_all[name]["count"] for name in names], color="C7")
    right.bar_label(bars, fontsize=8)
    right.set_ylabel("errors, at all scores")
    for axis in (left, right):
        axis.tick_params(axis="x", rotation=25)
        axis.grid(axis="y", alpha=0.3)
    return figure


def by_threshold(results: Mapping[str, Any], title: str) -> Any:
    """A Figure: precision, recall and F1 of all classes against the score threshold."""
    figure, (axis,) = _figure(title, 6, 4)
    columns = results["by_threshold"]
    for name in ("precision", "recall", "f1"):
        axis.plot(columns["threshold"], columns[name], label=name)
    axis.axvline(results["threshold"], color="grey", linestyle=":", label="threshold used")
    _unit(axis, "score threshold", "precision, recall, F1 at IoU .5")
    return figure


def precision_recall(results: Mapping[str, Any], title: str) -> Any:
    """A Figure: precision against recall, mean over classes, at IoU .5, .75 and .5:.95."""
    figure, (axis,) = _figure(title, 6, 4)
    curves = results["precision_recall"]
    for name in ("0.5", "0.75", "0.5:0.95"):
        label = f"IoU {name} (area {np.mean(curves[name]):.3f})"
        axis.plot(curves["recall"], curves[name], label=label)
    _unit(axis, "recall", "precision, mean over classes")
    return figure


def confusion(results: Mapping[str, Any], title: str) -> Any:
    """A Figure: which class objects were taken for; colour is the share of the row."""
    found = results["confusion"]
    counts, names = np.array(found["counts"]), found["names"]
    side = float(np.clip(0.45 * len(names) + 2, 4.5, 16))
    heading = f"{title}\nscores from {results['threshold']:.3f}, IoU from {found['iou']}"
    figure, (axis,) = _figure(heading, side + 1, side)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, label="share of the row", shrink=0.7)
    if len(names) <= _NAMED:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= _NAMED // 2:
        for row, column in np.argwhere(counts):
            ink = "white" if share[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
    axis.set_xlabel("detected as")
    axis.set_ylabel("object")
    return figure


def calibration(results: Mapping[str, Any], title: str) -> Any:
    """A Figure: how often detections of a score are right, and how many there are."""
    figure, (axis, below) = _figure(title, 6, 5.5, rows=2)
    found = results["calibration"]
    number, score = np.array(found["number"]), np.array(found["score"])
    some = number > 0
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", label="score = precision")
    for name, label in (("precision", "precision at IoU .5"), ("iou", "mean IoU of right ones")):
        axis.plot(score[some], np.array(found[name])[some], marker="o", label=label)
    axis.set_title(f"mean difference of score and precision: {found['error']:.3f}", fontsize=9)
    _unit(axis, "", "precision, IoU")
    edges = np.arange(len(number)) / len(number)
    below.bar(edges, number, width=1 / len(number), align="edge", color="C7")
    below.set_yscale("symlog")
    below.set_xlim(0, 1)
    below.set_xlabel("score")
    below.set_ylabel("detections")
    return figure


def _figure(title, width, height, rows=1, columns=1):
    from matplotlib import figure as figure_lib  # imported late, so programs start without it

    figure = figure_lib.Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _unit(axis, x, y):
    """Both axes from 0 to 1, with names, a grid and a legend."""
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)

"""Measures how well a detector's anchors fit the training objects, and fits others.

    detlab tools anchors --config retinanet_bccd --config.data.root=BCCD --output shown
    detlab tools anchors --config yolov5_voc --limit 2000 --output shown

For objects by size and class it prints: `mean` and `.5`, `.7`, the best IoU with an anchor of the
same middle, its mean and the shares of objects above .5 and .7; `ratio`, the share with an anchor
whose sides differ by less than 4 times, which is the best possible recall (BPR) of YOLOv5: an
object above it can learn from no anchor; `placed`, the same as `mean`, `.5`, `.7` with the anchors
where they lie on the canvas; `positives`, how many anchors learn an object by the detector's own
rule (median, least); and `none`, the objects that no anchor learns.

The second block is for anchors fitted by k-means and random changes, as many as now, the smallest
on the finest level.  The last line says whether they are worth it.  Detectors with the field
anchor_sizes are built with them, and the line can be used as it is; for others it shows what could
be gained.  Assignments that depend on predictions (PAA's) need weights.
"""

from detlab import cli
from detlab.tools import analysis_flags

if __name__ == "__main__":
    cli.answer_first(analysis_flags.anchors(__doc__))  # --help needs no import below

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from detlab import contract, errors
from detlab.data import anchor_fit
from detlab.data import settings as settings_lib
from detlab.metrics import tables
from detlab.tools import anchor_grids, fit_anchors, frame

_BATCH = 8  # images at a time
_SHOWN = 2000  # objects in the cloud of sizes, at most
# Sides of objects on the canvas, sqrt(area) px; the last three are COCO's sizes.
SIZES = {"tiny": (0, 16), "small": (16, 32), "medium": (32, 96), "large": (96, np.inf)}


class Objects(NamedTuple):
    """The training objects on their canvases, and how anchors meet them."""

    sizes: np.ndarray  # [n, 2] width, height px
    labels: np.ndarray  # [n]
    placed: np.ndarray  # [n] best IoU with the anchors on the canvas
    positives: np.ndarray  # [n] number of entries that learn the object; -1 unknown


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, analysis_flags.anchors(__doc__))
    analysis_flags.check_anchors(args)
    with_weights = args.workdir or args.checkpoint
    loaded = frame.load(args, overrides) if with_weights else None
    config = loaded.config if loaded else frame.config_of(args, overrides)
    source = frame.open_data(config, "train", args.limit, loaded.class_names if loaded else None)
    inputs = {"data": config.data.source, "part": "train", "images": len(source)}
    output = frame.Output("anchors", args, config, inputs)
    ratio = args.ratio or contract.field(config, "anchor_ratio") or 4.0

    def finder(config):
        variables = (loaded.params, loaded.state) if loaded else ()
        return anchor_grids.Anchors(config, *variables)

    now = finder(config)
    first = next(frame.batches(source, config, "train", _BATCH))
    levels = now.levels(first)
    sizes = np.concatenate([level.sizes for level in levels])
    fitted, refusal = np.zeros((0, 2)), ""
    try:
        fitted = fit(source, config, len(sizes), args.seed, ratio, args.generations)
    except ValueError as error:
        refusal = f"not fitted: {error}"
    subjects = {"now": (now, None)}
    with_fitted = None
    if not refusal:
        with_fitted = rebuilt(config, fitted, len(levels))
        subjects["fitted"] = (finder(with_fitted), None) if with_fitted else (now, fitted)
    measured = measure(subjects, source)
    objects = measured["now"]
    if not len(objects.sizes):
        raise errors.UserError(f"the {len(source)} training images have no object to learn.")
    of_block = {"now": sizes, "fitted": fitted}
    blocks = {
        name: block(found, of_block[name], source.class_names, ratio)
        for name, found in measured.items()
    }
    results = {
        "ratio": ratio,
        "weights": loaded.weights if loaded else None,
        "assignment": now.assignment or "main",
        "canvases": [list(canvas) for canvas in config.data.canvases],
        "levels": [
            {"stride": level.stride, "sizes": level.sizes, "cells": [len(level.y), len(level.x)]}
            for level in levels
        ],
        "fitted_sizes": fitted,
        **blocks,
        "verdict": refusal or verdict(blocks, config, args.worth, ratio),
        "pictures": pictures(objects, sizes),
    }
    title = (
        f"{config.detector}, {len(objects.sizes)} objects in {len(source)} training images of"
        f" {config.data.source}"
    )
    output.figure(draw(results["pictures"], sizes, fitted, title), "anchors")
    output.figure(draw_cells(first.images[0], levels, title), "cells")
    text = [title]
    for name, found in blocks.items():
        text += [f"\n{name}: {len(sizes)} sizes of anchors", _table(found)]
    if with_fitted:
        text.append(fit_anchors.as_config(fitted, len(levels)))
    output.close(frame.rounded(results), "\n".join([*text, "", results["verdict"]]))


def measure(subjects: Mapping[str, tuple], source: Any) -> dict[str, Objects]:
    """How anchors meet the objects of a source, which is read once for all subjects.

    Args:
      subjects: name -> the finder of a detector's anchors, and [k, 2] px of others in their place,
        for which positives are not counted, or None.
      source: of training images.
    """
    parts = {name: [] for name in subjects}
    config = next(iter(subjects.values()))[0].config
    for batch in frame.batches(source, config, "train", _BATCH):
        image, slot = np.nonzero(batch.valid)
        boxes = batch.boxes[image, slot].astype(float)
        for name, (finder, sizes) in subjects.items():
            levels = finder.levels(batch)
            count = np.full(len(image), -1)
            if sizes is None:
                found = finder.positives(batch)
                table = np.zeros(batch.valid.shape, int)
                np.add.at(table, (found.image, found.slot), 1)
                count = table[image, slot]
            else:
                levels = anchor_grids.with_sizes(levels, sizes)
            placed = anchor_grids.placed_ious(boxes, levels)
            sides = boxes[:, 2:] - boxes[:, :2]
            parts[name].append(Objects(sides, batch.labels[image, slot], placed, count))
    found = {}
    for name, of_batches in parts.items():
        together = Objects(*map(np.concatenate, zip(*of_batches, strict=True)))
        keep = (together.sizes > 0).all(1)
        found[name] = Objects(*(values[keep] for values in together))
    return found


def fit(
    source: Any,
    config: config_dict.ConfigDict,
    count: int,
    seed: int,
    ratio: float,
    generations: int,
) -> np.ndarray:
    """Fitted anchors [count, 2], width and height px, see `anchor_fit.fit`; reads no image.

    Args:
      source: of training images.
      config: with their canvases.
      count: of anchors.
      seed: of the random changes.
      ratio: largest of sides at which an anchor may learn an object.
      generations: rounds of random changes.
    Raises:
      ValueError: there are too few objects.
    """
    resize = settings_lib.of(config.data, "train").resize
    sizes = anchor_fit.object_sizes(source, config.data.canvases, resize)
    fitted = anchor_fit.fit(sizes, count, np.random.default_rng(seed), ratio, generations)
    return np.round(fitted, 1)  # as printed


def rebuilt(
    config: config_dict.ConfigDict, sizes: np.ndarray, levels: int
) -> config_dict.ConfigDict | None:
    """The config with other anchors; None if the detector has no field for them."""
    if contract.field(config, "anchor_sizes") is None:
        return None
    copy = config.copy_and_resolve_references()
    with copy.unlocked(), copy.model.ignore_type():
        parts = np.split(sizes, levels)
        copy.model.anchor_sizes = tuple(tuple(map(tuple, part.tolist())) for part in parts)
    return copy


def block(
    objects: Objects, anchors: np.ndarray, class_names: Sequence[str], ratio: float
) -> dict[str, dict[str, Any]]:
    """The figures of all objects, and of those of each size and class that has objects.

    Args:
      objects: measured with the anchors.
      anchors: [k, 2] width, height px.
      class_names: by label.
      ratio: largest of sides at which an anchor may learn an object.
    """
    best = anchor_grids.shape_ious(objects.sizes, anchors).max(1)
    nearest = anchor_grids.side_ratios(objects.sizes, anchors).min(1)
    side = np.sqrt(objects.sizes.prod(1))
    rows = {name: (low <= side) & (side < high) for name, (low, high) in SIZES.items()}
    rows |= {name: objects.labels == label for label, name in enumerate(class_names)}
    rows["all"] = np.ones(len(side), bool)
    found = {}
    for name, mask in rows.items():
        if not mask.any():
            continue
        placed, count = objects.placed[mask], objects.positives[mask]
        known = count.min() >= 0
        found[name] = {
            "objects": int(mask.sum()),
            "mean_iou": best[mask].mean(),
            "recall_50": (best[mask] >= 0.5).mean(),
            "recall_70": (best[mask] >= 0.7).mean(),
            "best_possible_recall": (nearest[mask] < ratio).mean(),
            "placed_mean_iou": placed.mean(),
            "placed_recall_50": (placed >= 0.5).mean(),
            "placed_recall_70": (placed >= 0.7).mean(),
            "positives_median": float(np.median(count)) if known else None,
            "positives_least": int(count.min()) if known else None,
            "without_positive": int((count == 0).sum()) if known else None,
        }
    return found


def verdict(
    blocks: dict[str, Any], config: config_dict.ConfigDict, worth: float, ratio: float
) -> str:
    """Whether the fitted anchors are worth it, by the recall that the detector's rule goes by."""
    key, what = "placed_recall_50", "share of objects with an anchor of IoU 0.5 on the canvas"
    if contract.field(config, "anchor_ratio") is not None:
        key, what = "best_possible_recall", f"share of objects within {ratio:g} times of an anchor"
    now, fitted = (blocks[name]["all"][key] for name in ("now", "fitted"))
    gain = fitted - now
    word = "fit" if gain >= worth else "keep"
    return f"{word}: recall {gain:+.3f} ({what}, {now:.3f} now, {fitted:.3f} fitted)"


def pictures(objects: Objects, anchors: np.ndarray) -> dict[str, Any]:
    """What the picture shows beside the rows: IoUs by size, positives by side, some of the sizes.

    Args:
      objects: measured.
      anchors: [k, 2] width, height px.
    """
    best = anchor_grids.shape_ious(objects.sizes, anchors).max(1)
    side = np.sqrt(objects.sizes.prod(1))
    edges = np.linspace(0, 1, 21)
    of_size = {}
    for name, (low, high) in SIZES.items():
        mask = (low <= side) & (side < high)
        if mask.any():
            of_size[name] = np.histogram(best[mask], edges)[0]
    bins = 2.0 ** np.arange(0, 11.5, 0.5)
    number = np.digitize(side, bins)
    rows = []
    for i in range(1, len(bins)):
        count = objects.positives[number == i]
        if len(count):
            low, median, high = np.percentile(count, (5, 50, 95))
            rows.append({"side": bins[i - 1] * 2**0.25, "p5": low, "p50": median, "p95": high})
    some = np.random.default_rng(0).permutation(len(objects.sizes))[:_SHOWN]
    return {
        "iou_edges": edges,
        "iou_counts": of_size,
        "positives_by_side": rows,
        "sizes": objects.sizes[some].round(1),
    }


def draw(shown: dict[str, Any], anchors: Any, fitted: Any, title: str) -> Any:
    """A matplotlib Figure: best IoU by size, sizes of objects and anchors, positives by side.

    Args:
      shown: from `pictures`.
      anchors, fitted: [k, 2] width, height px.
      title: of the figure.
    """
    from matplotlib import figure as figure_lib

    figure = figure_lib.Figure(figsize=(14, 4.5), layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    edges, bottom = np.asarray(shown["iou_edges"]), 0
    for name, counts in shown["iou_counts"].items():
        left.bar(
            edges[:-1], counts, np.diff(edges), bottom, align="edge", edgecolor="w", label=name
        )
        bottom = bottom + np.asarray(counts)
    left.set(xlabel="best IoU with an anchor of the same middle", ylabel="objects", xlim=(0, 1))
    left.legend(title="side on the canvas")
    sizes = np.asarray(shown["sizes"])
    middle.scatter(*sizes.T, s=4, alpha=0.3, color="0.5", label="objects")
    middle.scatter(*np.asarray(anchors).T, marker="s", color="C3", s=28, label="anchors now")
    middle.scatter(
        *np.asarray(fitted).T, marker="D", facecolors="none", edgecolors="C0", s=28, label="fitted"
    )
    for axis, set_scale in ((middle.xaxis, middle.set_xscale), (middle.yaxis, middle.set_yscale)):
        set_scale("log", base=2)
        axis.set_major_formatter("{x:g}")
    middle.set(xlabel="width, px", ylabel="height, px")
    middle.legend()
    middle.grid(alpha=0.3)
    rows = shown["positives_by_side"]
    x = [row["side"] for row in rows]
    right.fill_between(x, [r["p5"] for r in rows], [r["p95"] for r in rows], alpha=0.25)
    right.plot(x, [row["p50"] for row in rows], "o-", label="median, band of 5 to 95 %")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set(xlabel="side of the object, sqrt(area) px", ylabel="positive anchors")
    right.set_ylim(bottom=0)
    right.legend()
    right.grid(alpha=0.3)
    return figure


def draw_cells(image: np.ndarray, levels: Sequence[anchor_grids.Level], title: str) -> Any:
    """A matplotlib Figure of an image for each level, with the anchors of its middle cell.

    Args:
      image: [H, W, 3] on the canvas.
      levels: of the canvas.
      title: of the figure.
    """
    from matplotlib import figure as figure_lib
    from matplotlib import patches

    height, width = image.shape[:2]
    columns = min(len(levels), 5)
    rows = -(-len(levels) // columns)
    size = (3 * columns, 0.5 + 3.2 * rows * height / width)
    figure = figure_lib.Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}: the anchors of one cell", fontsize=10)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, level in zip(panels, levels, strict=False):
        axes.imshow(np.clip(np.round(image), 0, 255).astype(np.uint8))
        x, y = level.x[len(level.x) // 2], level.y[len(level.y) // 2]
        for i, (w, h) in enumerate(level.sizes):
            corner = (x - w / 2, y - h / 2)
            axes.add_patch(patches.Rectangle(corner, w, h, fill=False, edgecolor=f"C{i % 10}"))
        axes.set_title(f"stride {level.stride:g} px", fontsize=9)
        w, h = level.sizes.max(0)  # they may be larger than the image
        axes.set(xlim=(min(0, x - w / 2), max(width, x + w / 2)), xticks=(), yticks=())
        axes.set(ylim=(max(height, y + h / 2), min(0, y - h / 2)))
    for axes in panels[len(levels) :]:
        axes.remove()
    return figure


def _table(found):
    header = ("objects", "number", "mean", ".5", ".7", "ratio", "placed", ".5", ".7")
    rows = []
    for name, row in found.items():
        median, least = row["positives_median"], row["positives_least"]
        keys = ("mean_iou", "recall_50", "recall_70", "best_possible_recall")
        keys += ("placed_mean_iou", "placed_recall_50", "placed_recall_70")
        rows.append(
            [
                name,
                str(row["objects"]),
                *(f"{row[key]:.3f}" for key in keys),
                "n/a" if median is None else f"{median:g}, {least}",
                "n/a" if median is None else str(row["without_positive"]),
            ]
        )
    return tables.text_table((*header, "positives", "none"), rows)


if __name__ == "__main__":
    errors.run_main(main)

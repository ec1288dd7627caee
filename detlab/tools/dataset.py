"""Says what a data set holds: classes, sizes, ratios, objects an image, and what is wrong with it.

    python -m detlab.tools.dataset --config retinanet_bccd --config.data.root=BCCD --output found
    python -m detlab.tools.dataset --images val2017 --annotations instances.json --output found

Each part is measured three times: as it is in the files, on the canvas that the network sees, and
(training) in the first images of the augmented stream.  Warnings name the first files.  Two images
are equal if their pixels are, whatever their names.
"""

from detlab import cli
from detlab.tools import data_flags

if __name__ == "__main__":
    cli.answer_first(data_flags.dataset(__doc__))  # --help needs no import below

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from detlab import errors, progress
from detlab import text as text_lib
from detlab.data import loader, plan, records, transforms
from detlab.data import settings as settings_lib
from detlab.metrics import tables
from detlab.tools import frame, images

SMALL, LARGE = 32.0, 96.0  # px: COCO's borders of sqrt(area)
THIN = 2.0  # px: objects with a smaller side have no shape
HARD = 8.0  # px: the finest stride of most detectors
SAME_BOX = 0.99  # IoU of two boxes of one class that mark one object
IMBALANCE = 50  # objects of the most frequent class for one of the rarest
NAMED = 5  # files a warning names
SIDES = np.geomspace(1, 4096, 49)  # px, four bins a doubling
RATIOS = np.geomspace(1 / 16, 16, 33)  # width / height


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, data_flags.dataset(__doc__))
    if args.augmented < 0:
        raise errors.UserError(f"--augmented is {args.augmented}; it must be at least 0.")
    parts = images.parts_of(args)
    config = images.config_of(args, overrides)
    output = frame.Output(
        "dataset", args, config, {part: images.describe(config, part) for part in parts}
    )
    results, texts, digests = {}, [], {}
    for part in parts:
        source = images.open_part(config, part)
        positions = range(min(len(source), args.limit or len(source)))
        found = examine(source, positions, config, part, args.quick)
        digests[part] = found.pop("digests")
        if part == "train" and args.augmented:
            found["augmented"] = measure_stream(config, args.augmented, args.seed)
        results[part] = found
        output.figure(draw(found, f"{images.describe(config, part)}"), part)
        texts.append(report(found, part))
    if len(parts) == 2:
        both = [key for key in digests["train"] if key in digests["eval"]]
        pairs = [f"{digests['train'][key][0]} = {digests['eval'][key][0]}" for key in both]
        results["in_both_parts"] = {"count": len(both), "first": pairs[:NAMED]}
        if both:
            texts.append(
                f"images that are in both parts: {len(both)}, {text_lib.listed(pairs, NAMED)}"
            )
    output.close(results, "\n\n".join(texts))


class Objects(NamedTuple):
    """The n objects of some images."""

    image: np.ndarray  # [n] number of the image, from 0
    boxes: np.ndarray  # [n, 4] xyxy px
    labels: np.ndarray  # [n]
    ignore: np.ndarray  # [n] bool
    area: np.ndarray  # [n] px^2, as annotated

    @property
    def sides(self):
        """Widths and heights [n, 2] px."""
        return np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0)


def collect(records_: Sequence[dict[str, Any]]) -> Objects:
    """The objects of records, one record an image."""
    counts = [len(record["labels"]) for record in records_]
    names = ("boxes", "labels", "ignore", "area")
    empty = (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0))
    columns = [
        np.concatenate([none, *(record[name] for record in records_)])
        for name, none in zip(names, empty, strict=True)
    ]
    return Objects(np.repeat(np.arange(len(counts)), counts), *columns)


def examine(
    source: Any, positions: Sequence[int], config: config_dict.ConfigDict, part: str, quick: bool
) -> dict[str, Any]:
    """Everything that is told of a part; `digests` {pixels: names} is for comparing parts."""
    objects = collect([source.annotation(i) for i in positions])
    sizes = np.array([source.size(i) for i in positions], np.int64)
    block = None if part == "train" else config.eval
    settings = settings_lib.of(config.data, part, block)
    on_canvas = scaled(objects, canvas_scales(sizes, settings))
    faults, digests = ({}, {}) if quick else read(source, positions)
    digests = {
        key: [shorter(name, config.data.root) for name in same] for key, same in digests.items()
    }
    names = [shorter(source.name(i), config.data.root) for i in positions]
    return {
        "images": len(positions),
        "raw": summarise(objects, source.class_names, len(positions)),
        "canvas": summarise(on_canvas, source.class_names, len(positions)),
        "image_sizes": image_sizes(sizes),
        "joint": joint(objects, sizes),
        "counts": records.counts(source),
        "problems": list(source.problems),
        "warnings": warnings(
            objects,
            on_canvas,
            sizes,
            names,
            source.class_names,
            settings.max_boxes,
            faults,
            digests,
        ),
        "digests": digests,
    }


def read(source: Any, positions: Sequence[int]) -> tuple[dict[int, str], dict[str, list[str]]]:
    """Decodes all images: {image: why it cannot be read} and {digest of its pixels: names}."""
    faults, digests = {}, {}

    def digest(i):
        try:
            image = source[i]["image"]
        except records.DataError as error:
            return str(error)
        return hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.shape).encode())

    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        progress.bar(len(positions), "read", "img", leave=False) as bar,
    ):
        for k, found in enumerate(pool.map(digest, positions)):
            if isinstance(found, str):
                faults[k] = found
            else:
                digests.setdefault(found.hexdigest(), []).append(source.name(positions[k]))
            bar.update()
    return faults, digests


def shorter(name: str, root: str) -> str:
    """The name of an image below the folder of the data."""
    path = pathlib.PurePath(name)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else name


def canvas_scales(sizes, settings: settings_lib.Settings):
    """Factors [n, 2] of width and height by which images of sizes [n, 2] change on their canvas."""
    scales = np.ones((len(sizes), 2))
    for canvas, group in plan.eval_groups(sizes, settings):
        for k in group.tolist():
            size = tuple(sizes[k].tolist())
            if settings.resize == "stretch":
                sides = canvas
            elif settings.resize == "letterbox":
                square = (settings.longest,) * 2 if settings.rectangles else canvas
                sides = transforms.letterbox_sides(size, square, settings.rounding)
            else:
                sides = plan.fitted_sides(size, settings)
            scales[k] = sides[1] / size[1], sides[0] / size[0]
    return scales


def scaled(objects: Objects, scales) -> Objects:
    """The objects once the images are scaled by scales [images, 2], of width and height."""
    factors = scales[objects.image]
    return objects._replace(
        boxes=objects.boxes * np.tile(factors, 2), area=objects.area * factors.prod(axis=1)
    )


def summarise(objects: Objects, class_names: Sequence[str], num_images: int) -> dict[str, Any]:
    """Counts and percentiles of all objects and of each class, and histograms of their shapes."""
    counted = objects.ignore == 0
    total = int(counted.sum())
    rows = [
        _row(
            objects,
            counted & (objects.labels == label),
            objects.ignore & (objects.labels == label),
            name,
            total,
        )
        for label, name in enumerate(class_names)
    ]
    widths, heights = objects.sides[counted].T
    area = widths * heights
    per_image = np.bincount(objects.image[counted], minlength=num_images)
    return {
        "all": _row(objects, counted, objects.ignore, "all", total),
        "classes": rows,
        "side_histogram": _histogram(np.sqrt(area), SIDES),
        "ratio_histogram": _histogram(widths[area > 0] / heights[area > 0], RATIOS),
        "objects_per_image": np.bincount(per_image).tolist(),
    }


def _row(objects, counted, ignored, name, total):
    """The numbers of the objects `counted` [n] bool; `ignored` [n] are only numbered."""
    widths, heights = objects.sides[counted].T
    area = objects.area[counted]
    per_image = np.unique(objects.image[counted], return_counts=True)[1]
    has_area = (widths > 0) & (heights > 0)
    return {
        "name": name,
        "images": len(per_image),
        "objects": int(counted.sum()),
        "share": float(counted.sum() / total) if total else None,
        "ignored": int(ignored.sum()),
        "side": _percentiles(np.sqrt(widths * heights)),
        "ratio": _percentiles(widths[has_area] / heights[has_area]),
        "small": int((area < SMALL**2).sum()),
        "medium": int(((area >= SMALL**2) & (area < LARGE**2)).sum()),
        "large": int((area >= LARGE**2).sum()),
        "per_image": float(per_image.mean()) if len(per_image) else None,
        "most_in_image": int(per_image.max(initial=0)),
    }


def _percentiles(values):
    """{p5, p50, p95} of values [n]; None without any."""
    if not len(values):
        return None
    return dict(zip(("p5", "p50", "p95"), np.percentile(values, (5, 50, 95)).tolist(), strict=True))


def _histogram(values, edges):
    """Counts in bins; values beyond the edges are in the first and the last."""
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return {"edges": np.round(edges, 4).tolist(), "counts": counts.tolist()}


def image_sizes(sizes) -> list[dict[str, int]]:
    """The most frequent sizes of images with sizes [n, 2] height, width, at most 100."""
    unique, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:100]
    return [
        {"width": int(unique[k, 1]), "height": int(unique[k, 0]), "images": int(counts[k])}
        for k in order
    ]


def joint(objects: Objects, sizes) -> dict[str, Any]:
    """Two-dimensional histograms: widths by heights, px, and centres as parts of the image.

    Args:
      sizes: [images, 2] height, width px.
    """
    counted = ~objects.ignore
    sides, boxes = objects.sides[counted], objects.boxes[counted]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / sizes[objects.image[counted]][:, ::-1]
    edges, parts = SIDES[::2], np.linspace(0, 1, 21)

    def counts(points, bins):
        points = np.clip(points, bins[0], bins[-1])
        return np.histogram2d(points[:, 1], points[:, 0], (bins, bins))[0].astype(int).tolist()

    return {
        "side_edges": np.round(edges, 4).tolist(),
        "height_by_width": counts(sides, edges),  # rows: heights
        "centre_edges": np.round(parts, 4).tolist(),
        "centre_y_by_x": counts(centres, parts),
    }


# ------------------------------------------------------------------------------------------------
# Warnings


def warnings(
    objects: Objects,
    on_canvas: Objects,
    sizes,
    names: Sequence[str],
    class_names: Sequence[str],
    max_boxes: int,
    faults: dict[int, str],
    digests: dict[str, list[str]],
) -> list[dict[str, Any]]:
    """What may be wrong: dicts of `what`, `count` and `first`, names of files or classes.

    Args:
      sizes: [images, 2] height, width px.
      names: of the images.
      faults, digests: see `read`.
    """
    counted = ~objects.ignore
    height, width = sizes[objects.image].T
    low, high = objects.boxes[:, :2], objects.boxes[:, 2:]
    outside = (low < -1).any(axis=1) | (high[:, 0] > width + 1) | (high[:, 1] > height + 1)
    thin = counted & (objects.sides < THIN).any(axis=1)
    hard = counted & ~thin & (on_canvas.sides < HARD).any(axis=1)
    per_image = np.bincount(objects.image, minlength=len(names))
    numbers = np.bincount(objects.labels[counted], minlength=len(class_names))
    present = numbers[numbers > 0]
    rare = numbers * IMBALANCE < numbers.max(initial=0)
    equal = [" = ".join(same[:3]) for same in digests.values() if len(same) > 1]

    def on_images(what, chosen):
        first = dict.fromkeys(names[k] for k in objects.image[chosen])
        return what, int(chosen.sum()), list(first)

    found = [
        ("images that cannot be read", len(faults), list(faults.values())),
        ("images that are equal", len(equal), equal),
        ("images without objects", int((per_image == 0).sum()), _names(names, per_image == 0)),
        (
            f"images with more objects than config.data.max_boxes ({max_boxes})",
            int((per_image > max_boxes).sum()),
            _names(names, per_image > max_boxes),
        ),
        on_images("boxes that reach more than 1 px beyond their image", outside),
        on_images(f"objects with a side under {THIN:g} px", thin),
        on_images(
            f"objects with a side of {THIN:g} px or more, under {HARD:g} px on the canvas", hard
        ),
        on_images(
            f"objects marked twice (same class, IoU above {SAME_BOX})", marked_twice(objects)
        ),
        ("classes without objects", int((numbers == 0).sum()), _names(class_names, numbers == 0)),
        (
            f"classes with less than 1/{IMBALANCE} of the objects of the most frequent one",
            int((rare & (numbers > 0)).sum()) if len(present) else 0,
            _names(class_names, rare & (numbers > 0)),
        ),
    ]
    return [
        {"what": what, "count": count, "first": first[:NAMED]}
        for what, count, first in found
        if count
    ]


def _names(names, chosen):
    return [names[k] for k in np.flatnonzero(chosen)[:NAMED]]


def marked_twice(objects: Objects):
    """[n] bool: objects whose box an earlier one of the same image and class already has."""
    twice = np.zeros(len(objects.labels), bool)
    order = np.argsort(objects.image, kind="stable")
    bounds = np.flatnonzero(np.diff(objects.image[order], prepend=-1, append=-1))
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        rows = order[start:end]
        boxes = objects.boxes[rows]
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlap = np.maximum(high - low, 0).prod(axis=2)
        areas = objects.sides[rows].prod(axis=1)
        union = areas[:, None] + areas - overlap
        same = overlap > SAME_BOX * np.maximum(union, 1e-9)
        same &= objects.labels[rows, None] == objects.labels[rows]
        twice[rows] = np.tril(same, -1).any(axis=1)
    return twice


# ------------------------------------------------------------------------------------------------
# The training stream


def measure_stream(config: config_dict.ConfigDict, count: int, seed: int) -> dict[str, Any]:
    """`summarise` for the first images of the training stream, as the network gets them."""
    source = images.open_part(config, "train", whole=False)
    size = min(config.train.batch_size, count)
    found = []
    for loaded in loader.train_batches(
        source,
        settings_lib.of(config.data, "train"),
        batch_size=size,
        seed=seed,
        num_steps=-(-count // size),
    ):
        batch = loaded.batch
        for row in range(size):
            used = batch.valid[row] | batch.ignore[row]
            boxes = batch.boxes[row][used]
            found.append(
                {
                    "boxes": boxes,
                    "labels": batch.labels[row][used],
                    "ignore": batch.ignore[row][used],
                    "area": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
                }
            )
    found = found[:count]
    return {"images": len(found), **summarise(collect(found), source.class_names, len(found))}


# ------------------------------------------------------------------------------------------------
# Text and pictures


def report(found: dict[str, Any], part: str) -> str:
    """The numbers of a part as text."""
    forms = [name for name in ("raw", "canvas", "augmented") if name in found]
    header = ["class", "images", "objects", "share", "ignored", "S/M/L", "ratio 5/50/95"]
    header += [f"side px, {name}" for name in forms]
    rows = []
    for k in range(-1, len(found["raw"]["classes"])):
        row, *others = ([found[n]["all"], *found[n]["classes"]][k + 1] for n in forms)
        share = "n/a" if row["share"] is None else f"{100 * row['share']:.1f} %"
        rows.append(
            [row["name"], str(row["images"]), str(row["objects"]), share, str(row["ignored"])]
            + [f"{row['small']}/{row['medium']}/{row['large']}", _triple(row["ratio"], 2)]
            + [_triple(form["side"], 0) for form in (row, *others)]
        )
    lines = [f"{part}: {found['images']} images, sides are 5/50/95 percentiles of sqrt(area)"]
    lines.append(tables.text_table(header, rows))
    lines += [
        f"warning: {w['what']}: {w['count']}, {text_lib.listed(w['first'], NAMED)}"
        for w in found["warnings"]
    ]
    lines += [f"reading: {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _triple(values, digits):
    if values is None:
        return "n/a"
    return "/".join(f"{values[key]:.{digits}f}" for key in ("p5", "p50", "p95"))


def draw(found: dict[str, Any], name: str) -> Any:
    """A matplotlib Figure of a part's numbers."""
    from matplotlib import figure as figure_lib  # imported late, so programs start without it
    from matplotlib import ticker

    classes = found["raw"]["classes"]
    figure = figure_lib.Figure(
        figsize=(11, max(6.6, 0.19 * len(classes) + 2)), layout="constrained"
    )
    panels = figure.subplot_mosaic(
        [
            ["classes", "sides", "ratios"],
            ["classes", "joint", "centres"],
            ["classes", "count", "sizes"],
        ]
    )
    total = found["raw"]["all"]
    figure.suptitle(
        f"{name}: {found['images']} images, {total['objects']} objects, {total['ignored']} ignored"
    )
    _draw_classes(panels["classes"], classes)

    axis = panels["sides"]
    shown = {"raw": "in the files", "canvas": "on the canvas", "augmented": "augmented"}
    widths = {"raw": 1.5, "canvas": 3, "augmented": 1}  # the last two are often the same
    forms = [form for form in shown if form in found]
    for form in forms:
        counts = np.array(found[form]["side_histogram"]["counts"])
        percent = 100 * counts / max(counts.sum(), 1)
        axis.stairs(percent, SIDES, label=shown[form], linewidth=widths[form])
    for border in (SMALL, LARGE):
        axis.axvline(border, color="grey", linestyle=":", linewidth=1)
    axis.set(title="size of objects", xlabel="sqrt(width x height), px", ylabel="% of objects")
    _log(axis.set_xscale, axis.xaxis)
    _show_used(axis.set_xlim, SIDES, [found[form]["side_histogram"]["counts"] for form in forms])
    axis.legend(fontsize=8, framealpha=0.5)

    axis, histogram = panels["ratios"], found["raw"]["ratio_histogram"]
    axis.stairs(histogram["counts"], histogram["edges"], fill=True)
    axis.set(title="ratio of sides, in the files", xlabel="width / height", ylabel="objects")
    _log(axis.set_xscale, axis.xaxis)
    _show_used(axis.set_xlim, RATIOS, [histogram["counts"]])

    _draw_joint(figure, panels["joint"], found["joint"])
    axis, grid = panels["centres"], found["joint"]
    picture = axis.pcolormesh(grid["centre_edges"], grid["centre_edges"], grid["centre_y_by_x"])
    figure.colorbar(picture, ax=axis, label="objects")
    axis.set(title="centres of objects", xlabel="x / image width", ylabel="y / image height")
    axis.invert_yaxis()

    axis, numbers = panels["count"], found["raw"]["objects_per_image"]
    axis.bar(range(len(numbers)), numbers, width=0.9)
    axis.set(title="objects an image", xlabel="objects", ylabel="images")
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))

    axis, sizes = panels["sizes"], found["image_sizes"]
    axis.scatter(
        [size["width"] for size in sizes],
        [size["height"] for size in sizes],
        s=[10 + 200 * size["images"] / found["images"] for size in sizes],
        alpha=0.5,
    )
    axis.set(title="size of images", xlabel="width, px", ylabel="height, px")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    for axis in panels.values():
        axis.title.set_fontsize(10)
        axis.tick_params(labelsize=8)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_fontsize(8)
    return figure


def _draw_classes(axis, classes):
    """Bars of the objects of each class by size, with their number."""
    places = np.arange(len(classes))
    left = np.zeros(len(classes))
    for size, colour in (("small", "#9ecae1"), ("medium", "#4292c6"), ("large", "#084594")):
        counts = np.array([row[size] for row in classes])
        axis.barh(places, counts, left=left, color=colour, label=size)
        left += counts
    for place, row in enumerate(classes):
        axis.text(row["objects"], place, f" {row['objects']}", va="center", fontsize=8)
    axis.set_yticks(places, [row["name"] for row in classes], fontsize=8)
    axis.set(title=f"objects of {len(classes)} classes", xlabel="objects, without ignored ones")
    axis.set_ylim(len(classes) - 0.4, -0.6)
    axis.margins(x=0.15)
    axis.legend(fontsize=8, title="area in the files: 32^2, 96^2 px^2", title_fontsize=8)


def _log(set_scale, axis):
    """A scale of doublings with plain numbers."""
    from matplotlib import ticker

    set_scale("log", base=2)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_joint(figure, axis, grid):
    from matplotlib import colors

    counts = np.ma.masked_equal(grid["height_by_width"], 0)
    scale = colors.LogNorm(1, max(np.max(grid["height_by_width"]), 2))
    picture = axis.pcolormesh(grid["side_edges"], grid["side_edges"], counts, norm=scale)
    figure.colorbar(picture, ax=axis, label="objects")
    axis.set(title="width by height, in the files", xlabel="width, px", ylabel="height, px")
    _log(axis.set_xscale, axis.xaxis)
    _log(axis.set_yscale, axis.yaxis)
    edges = grid["side_edges"]
    _show_used(axis.set_xlim, edges, grid["height_by_width"])
    _show_used(axis.set_ylim, edges, np.transpose(grid["height_by_width"]))


def _show_used(set_limits, edges, counts):
    """Limits an axis to the bins that any row of counts [k, bins] uses."""
    used = np.flatnonzero(np.any(counts, axis=0))
    if len(used):
        set_limits(edges[used[0]], edges[used[-1] + 1])


if __name__ == "__main__":
    errors.run_main(main)

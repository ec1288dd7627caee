r"""Shows which pixels a place of a feature map depends on, and how much.

    detlab tools receptive_field --workdir runs/retinanet_shapes --output shown
    detlab tools receptive_field --config retinanet_bccd --config.data.root=BCCD --limit 4 \
        --output shown --taps 'backbone/stage._block0'

The theoretical field is the smallest box that holds every pixel with any influence; it ends at the
edges of the canvas, which `cut` marks (larger --config.data.canvases show more).  The effective
field (arXiv:1701.04128) is the size of the gradient of the map's sum of channels by the pixels,
averaged over images: `50`, `68` and `95 %` are the sides of the squares around the place that hold
this share of it.  It is compared with the anchors of the level, with the objects assigned to it,
and, with --before, with that of the initial weights.

The theoretical field is measured with positive weights and without biases, on images that grow
brighter in one direction and then in the other, so that neither signs nor maxima hide a pixel.
Norms over the whole map (GroupNorm) make it the whole canvas.
"""

from detlab import cli
from detlab.tools import analysis_flags

if __name__ == "__main__":
    cli.answer_first(analysis_flags.receptive_field(__doc__))  # --help needs no import below

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detlab import contract, errors, files, types
from detlab.metrics import tables
from detlab.run import state as state_lib
from detlab.tools import anchor_grids, frame

SHARES = (0.5, 0.68, 0.95)
_BATCH = 2  # images at a time: the two of the theoretical field
_MOST = 24  # maps


class Map(NamedTuple):
    """A feature map on the canvas, and the place that is looked at."""

    name: str
    shape: tuple[int, int]  # (Hl, Wl)
    stride: float  # px
    cell: tuple[int, int]  # row, column
    middle: tuple[float, float]  # x, y px


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, analysis_flags.receptive_field(__doc__))
    loaded = frame.load(args, overrides)
    config = loaded.config
    source = frame.open_data(config, "train", args.limit, loaded.class_names)
    batches = list(frame.batches(source, config, "train", _BATCH))
    canvas = batches[0].images.shape[1:3]
    batches = [batch for batch in batches if batch.images.shape[1:3] == canvas]
    place = analysis_flags.position(args.position, canvas)
    if args.images == "random":
        rng = np.random.default_rng(args.seed)
        shape = batches[0].images.shape
        images = [rng.integers(0, 256, shape).astype(np.float32) for _ in batches]
    else:
        images = [np.asarray(batch.images, np.float32) for batch in batches]
    count = [batch.real for batch in batches]
    inputs = {
        "data": config.data.source,
        "part": "train",
        "images": int(np.concatenate(count).sum()),
    }
    output = frame.Output("receptive_field", args, config, inputs)

    outputs = outputs_of(loaded.detector, args.taps)
    maps = find_maps(loaded, outputs, args.taps, canvas, place)
    gradient = jax.jit(gradients(outputs, [one.name for one in maps], [one.cell for one in maps]))
    largest = theoretical(gradient, loaded.params, loaded.state, canvas)
    pixels = list(zip(images, count, strict=True))
    effective = mean_field(gradient, loaded.params, loaded.state, pixels)
    before = [None] * len(maps)
    if args.before:
        initial = state_lib.variables(loaded.detector, config)
        before = mean_field(gradient, *initial, pixels)

    compared = of_levels(loaded, batches)
    rows = [
        row(one, extent, field, compared.get(one.shape), earlier)
        for one, extent, field, earlier in zip(maps, largest, effective, before, strict=True)
    ]
    results = {"canvas": list(canvas), "weights": loaded.weights, "maps": rows}
    weights = "untrained" if loaded.weights is None else "trained"
    what = f"images of {config.data.source}" if args.images == "data" else "random images"
    title = f"{config.detector}, {weights}, {output.inputs['images']} {what}"
    for one, field in zip(rows, effective, strict=True):
        output.figure(draw(one, field, title), _file(one["name"]))
    output.figure(draw_summary(rows, canvas, title), "receptive_field")
    with files.writing(output.path("fields.npz")):
        named = {_file(one.name): field for one, field in zip(maps, effective, strict=True)}
        np.savez_compressed(
            output.path("fields.npz"), **{k: np.float32(v) for k, v in named.items()}
        )
    output.close(frame.rounded(results), f"{title}\n{_table(rows)}")


def mean_field(gradient: Callable, params: Any, state: Any, pixels: Sequence[tuple]) -> np.ndarray:
    """The effective field [K, H, W] of each map, a mean over images.

    Args:
      gradient: compiled, from `gradients`.
      params: of the detector.
      state: of the detector.
      pixels: batches of images [B, H, W, 3] float32, and which of them count, [B] bool.
    """
    total = number = 0
    for images, real in pixels:
        found = np.asarray(gradient(params, state, images), np.float64)  # [K, B, H, W]
        total, number = total + found[:, real].sum(1), number + real.sum()
    return total / number


def outputs_of(detector: contract.Detector, pattern: str | None) -> Callable:
    """The function (params, state, images) -> {name: map [B, Hl, Wl, D]}.

    Args:
      detector: any.
      pattern: regex of module paths; None: the features of the pyramid, or the raw outputs of a
        detector that has no features apart.
    """

    def outputs(params, state, images):
        if pattern:
            found = detector.taps(params, state, images, pattern)
            return {name: x for name, x in found.items() if getattr(x, "ndim", 0) == 4}
        maps, _ = detector.maps(params, state, images, False)
        maps = maps.features or jax.tree.leaves(maps._replace(features=()))
        found = {}
        for x in maps:
            stride = stride_of(images.shape[1:3], x.shape[1:3])
            name = f"P{math.log2(stride):.3g}"  # the field's name for a level
            found[name if name not in found else f"{name} {len(found)}"] = x
        return found

    return outputs


def find_maps(
    loaded: frame.Loaded,
    outputs: Callable,
    pattern: str | None,
    canvas: tuple[int, int],
    place: tuple[float, float],
) -> list[Map]:
    """The maps to look at.

    Args:
      loaded: the detector.
      outputs: from `outputs_of`.
      pattern: of --taps, for the error.
      canvas: (height, width) px.
      place: x, y px.
    Raises:
      UserError: no module matches, or too many do.
    """
    images = jax.ShapeDtypeStruct((_BATCH, *canvas, 3), jnp.float32)
    shapes = jax.eval_shape(outputs, loaded.params, loaded.state, images)
    if not shapes:
        raise errors.UserError(
            f"--taps {pattern} matches no module with a map; list their paths with detlab tools"
            " feature_maps --list."
        )
    if len(shapes) > _MOST:
        first = ", ".join(list(shapes)[:6])
        raise errors.UserError(
            f"--taps {pattern} matches {len(shapes)} maps, more than {_MOST}: {first}, ...; give a"
            " narrower pattern."
        )
    maps = []
    for name, shape in shapes.items():
        rows, columns = shape.shape[1:3]
        stride = stride_of(canvas, (rows, columns))
        cell = min(int(place[1] / stride), rows - 1), min(int(place[0] / stride), columns - 1)
        middle = (cell[1] + 0.5) * stride, (cell[0] + 0.5) * stride
        maps.append(Map(name, (rows, columns), stride, cell, middle))
    return maps


def stride_of(canvas: tuple[int, int], shape: tuple[int, int]) -> float:
    """Pixels between the cells of a map: the power of two that gives its shape, if one does."""
    stride = canvas[1] / shape[1]
    power = 2.0 ** round(math.log2(stride))
    rounds_up = tuple(math.ceil(side / power) for side in canvas)
    return power if rounds_up == tuple(shape) else stride


def gradients(
    outputs: Callable, names: Sequence[str], cells: Sequence[tuple[int, int]]
) -> Callable:
    """The function (params, state, images) -> [K, B, H, W] size of the gradients by the pixels.

    They are those of the sum of the channels in one cell of each map, summed over colours.

    Args:
      outputs: from `outputs_of`.
      names: of the maps.
      cells: row and column in each map.
    """

    def compute(params, state, images):
        maps, back = jax.vjp(lambda images: outputs(params, state, images), images)

        def one(number):
            chosen = {name: jnp.zeros_like(x) for name, x in maps.items()}
            for i, (name, (r, c)) in enumerate(zip(names, cells, strict=True)):
                value = (number == i).astype(chosen[name].dtype)
                chosen[name] = chosen[name].at[:, r, c].set(value)
            return jnp.abs(back(chosen)[0]).sum(-1)

        return jax.lax.map(one, jnp.arange(len(names)))  # the forward pass is shared

    return compute


def theoretical(gradient: Callable, params: Any, state: Any, canvas: tuple[int, int]) -> list:
    """The extent of the pixels with any influence on each map's place.

    Args:
      gradient: compiled, from `gradients`.
      params: of the detector; only their shapes count, as those of the state.
      state: of the detector.
      canvas: (height, width) px.
    Returns:
      For each map, (left, top, right, bottom) px, right and bottom exclusive.
    """
    params, state = positive(params), positive(state)
    height, width = canvas
    up = np.arange(height)[:, None] / height + np.arange(width) / width
    # Above the mean colour that networks subtract.
    ramps = 200 + 25 * np.stack([up, up.max() - up])
    images = np.repeat(ramps[..., None], 3, axis=-1).astype(np.float32)
    found = np.asarray(gradient(params, state, images))  # [K, 2, H, W]
    return [extent((field != 0).any(0)) for field in found]  # NaN and infinity are not 0


def positive(tree: Any) -> Any:
    """Variables that make every unit active and every influence positive.

    Kernels are random and keep activations of order one, norms change nothing.  Offsets of
    deformable convolutions are 0.
    """
    rng = np.random.default_rng(0)

    def value(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim > 1 and "offset" not in name:
            weights = rng.uniform(0.5, 1.5, leaf.shape) / np.prod(leaf.shape[:-1])
        else:
            weights = np.full(leaf.shape, path[-1].key.startswith(("scale", "var")))
        return jnp.asarray(weights, leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, tree)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the true pixels of a mask [H, W], the last two exclusive."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(x):
        return 0, 0, 0, 0
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def side_of_share(field: np.ndarray, middle: tuple[float, float], share: float) -> float:
    """Side px of the smallest square around a point whose pixels hold a share of a field.

    Args:
      field: [H, W] >= 0.
      middle: x, y px.
      share: 0..1 of the sum.
    """
    y, x = (np.arange(n) + 0.5 for n in field.shape)
    distance = np.maximum(np.abs(x - middle[0]), np.abs(y - middle[1])[:, None]).ravel()
    order = np.argsort(distance, kind="stable")
    total = np.cumsum(field.ravel()[order])
    last = np.searchsorted(total, share * total[-1] * (1 - 1e-9))
    return float(2 * distance[order][min(last, len(order) - 1)] + 1)


def sides_of(field: np.ndarray, middle: tuple[float, float]) -> dict[str, float]:
    """Sides px of the squares that hold `SHARES` of a field [H, W], by share in percent."""
    return {f"{100 * share:.0f}": side_of_share(field, middle, share) for share in SHARES}


class Level(NamedTuple):
    """What a map's field is compared with."""

    anchor_side: float | None  # median of sqrt(area) px of the anchors of a cell
    anchors: Any  # [A, 2] width, height px, or None
    object_side: float | None  # median of sqrt(area) px of the objects that it learns
    objects: int


def of_levels(loaded: frame.Loaded, batches: Sequence[types.Batch]) -> dict[tuple, Level]:
    """(Hl, Wl) of the maps of predictions -> anchors and objects of the level.

    Args:
      loaded: the detector.
      batches: of the same canvas.
    """
    finder = anchor_grids.Anchors(loaded.config, loaded.params, loaded.state)
    try:
        levels = finder.levels(batches[0])
    except errors.UserError:
        levels = None  # a detector without anchors
    sides = {}
    for batch in batches:
        found = finder.positives(batch)
        size = batch.boxes[..., 2:] - batch.boxes[..., :2]
        side = np.sqrt(size.prod(-1))  # [B, G]
        for level, image, slot in set(zip(found.level, found.image, found.slot, strict=True)):
            sides.setdefault(int(level), []).append(float(side[image, slot]))
    known = {}
    for number, shape in enumerate(finder.shapes(batches[0])):
        anchors = levels[number].sizes if levels and number < len(levels) else None
        own = sides.get(number, [])
        known[shape] = Level(
            None if anchors is None else float(np.median(np.sqrt(anchors.prod(1)))),
            anchors,
            float(np.median(own)) if own else None,
            len(own),
        )
    return known


def row(
    one: Map,
    box: tuple[int, int, int, int],
    field: np.ndarray,
    level: Any,
    before: np.ndarray | None = None,
) -> dict[str, Any]:
    """Everything that is shown of a map, for the JSON.

    Args:
      one: the map.
      box: of the theoretical field, px.
      field: [H, W] the effective one.
      level: what it is compared with, a `Level`; None if there is nothing.
      before: [H, W] the effective one of the initial weights.
    """
    height, width = field.shape
    sides = sides_of(field, one.middle)
    profile = field.sum(0) / max(field.sum(), 1e-30)
    anchors = None if level is None else level.anchors
    found = {
        "name": one.name,
        "stride": one.stride,
        "cell": list(one.cell),
        "middle": list(one.middle),
        "theoretical": list(box),
        "theoretical_width": box[2] - box[0],
        "theoretical_height": box[3] - box[1],
        "cut": box[0] == 0 or box[1] == 0 or box[2] == width or box[3] == height,
        "effective": sides,
        "before": None if before is None else sides_of(before, one.middle),
        "anchors": anchors,
        "anchor_side": level.anchor_side if level else None,
        "object_side": level.object_side if level else None,
        "objects": level.objects if level else None,
        "profile": profile,
    }
    for name in ("anchor", "object"):
        side = found[f"{name}_side"]
        found[f"field_over_{name}"] = sides["95"] / side if side else None
    return found


def draw(one: dict[str, Any], field: np.ndarray, title: str) -> Any:
    """A matplotlib Figure of a map's field: heat with squares, and its profile along x.

    Args:
      one: from `row`.
      field: [H, W] the effective field.
      title: of the figure.
    """
    from matplotlib import colors, patches
    from matplotlib import figure as figure_lib

    height, width = field.shape
    figure = figure_lib.Figure(figsize=(11, 1.2 + 5.5 * height / width), layout="constrained")
    figure.suptitle(f"{one['name']}, stride {one['stride']:g} px; {title}", fontsize=10)
    left, right = figure.subplots(1, 2)
    most = max(field.max(), 1e-30)
    shades = colors.LogNorm(most * 1e-4, most)
    image = left.imshow(
        np.maximum(field, most * 1e-4), norm=shades, cmap="inferno", extent=(0, width, height, 0)
    )
    figure.colorbar(image, ax=left, shrink=0.8, label="size of the gradient")
    x, y = one["middle"]
    squares = [("95 %", "yellow", (one["effective"]["95"],) * 2)]
    anchors = [] if one["anchors"] is None else one["anchors"]
    squares += [("anchors", "lime", size) for size in anchors]
    for name, shade, (w, h) in squares:
        corner = (x - w / 2, y - h / 2)
        left.add_patch(patches.Rectangle(corner, w, h, fill=False, edgecolor=shade, label=name))
    x1, y1, x2, y2 = one["theoretical"]
    left.add_patch(
        patches.Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="w", linewidth=2, label="theoretical"
        )
    )
    handles, labels = left.get_legend_handles_labels()
    by_name = dict(zip(labels, handles, strict=True))
    left.legend(by_name.values(), by_name, fontsize=8, facecolor="0.4", labelcolor="w")
    left.set(xlim=(0, width), ylim=(height, 0), xlabel="x, px", ylabel="y, px")
    right.plot(np.arange(width) + 0.5, 100 * np.asarray(one["profile"]))
    for share, style in zip(one["effective"], (":", "--", "-"), strict=True):
        half = one["effective"][share] / 2
        for edge in (x - half, x + half):
            right.axvline(edge, color="C1", linestyle=style, linewidth=1)
        right.plot([], [], color="C1", linestyle=style, label=f"square of {share} %")
    right.set(xlim=(0, width), xlabel="x, px", ylabel="share of the gradient in a column, %")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    return figure


def draw_summary(rows: Sequence[dict[str, Any]], canvas: tuple[int, int], title: str) -> Any:
    """A matplotlib Figure of the sides of all maps' fields.

    Args:
      rows: from `row`.
      canvas: (height, width) px.
      title: of the figure.
    """
    from matplotlib import figure as figure_lib

    size = (2.5 + 1.1 * max(len(rows), 4), 4.5)
    figure = figure_lib.Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    x = np.arange(len(rows))
    theory = [max(one["theoretical_width"], one["theoretical_height"]) for one in rows]
    axes.bar(x, theory, 0.8, color="0.85", label="theoretical")
    for share, width, shade in (("95", 0.6, "0.65"), ("68", 0.4, "C0"), ("50", 0.2, "C3")):
        sides = [one["effective"][share] for one in rows]
        axes.bar(x, sides, width, color=shade, label=f"{share} % of the gradient")
    for key, marker, name in (("anchor_side", "s", "anchors"), ("object_side", "o", "objects")):
        sides = [np.nan if one[key] is None else one[key] for one in rows]
        if np.isfinite(sides).any():
            axes.plot(x, sides, marker, color="k", fillstyle="none", label=f"{name}, median side")
    if all(one["before"] for one in rows):
        sides = [one["before"]["95"] for one in rows]
        axes.plot(x, sides, "_", color="C1", markersize=24, label="95 % before training")
    for place, one, side in zip(x, rows, theory, strict=True):
        if one["cut"]:
            axes.annotate("cut", (place, side), ha="center", va="bottom", fontsize=8)
    names = [f"{one['name']}\nstride {one['stride']:g}" for one in rows]
    axes.set_xticks(x, names, fontsize=8, rotation=0 if len(rows) < 8 else 90)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("side, px")
    axes.set_title(f"{title}, canvas {canvas[1]} x {canvas[0]} px", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", f"field_{name}")


def _table(rows):
    header = ("map", "stride", "theoretical", "50 %", "68 %", "95 %", "before")
    lines = []
    for one in rows:
        of_anchor, of_object = one["field_over_anchor"], one["field_over_object"]
        lines.append(
            [
                one["name"],
                f"{one['stride']:g}",
                f"{one['theoretical_width']} x {one['theoretical_height']}"
                + (" cut" if one["cut"] else ""),
                *(f"{side:g}" for side in one["effective"].values()),
                f"{one['before']['95']:g}" if one["before"] else "n/a",
                "n/a" if of_anchor is None else f"{one['anchor_side']:.1f}",
                "n/a" if of_anchor is None else f"{of_anchor:.2f}",
                "n/a" if of_object is None else f"{one['object_side']:.1f}",
                "n/a" if of_object is None else f"{of_object:.2f}",
            ]
        )
    header += ("anchors", "95 % over", "objects", "95 % over")
    return tables.text_table(header, lines)


if __name__ == "__main__":
    errors.run_main(main)

"""Draws loss functions and their gradients, and what a detector's loss teaches on real images.

    detlab tools losses --losses bce,focal,qfl,varifocal,ghm --output shown
    detlab tools losses --losses focal --gamma 0,1,2,5 --output shown
    detlab tools losses --losses l1,smooth_l1,iou_log,giou --scales 1,0.5,2 --output shown
    detlab tools losses --workdir runs/retinanet_shapes --output shown

The functions are those that the detectors use, the gradients are jax's.  Losses of one family are
drawn together: classification against the probability (or logit) of the true class, box losses
against the shift of a box in sides of its object (or the IoU), those of embeddings against their
distance.  --losses all draws the whole --family.

With a detector, the gradients of one term of its loss on training images are counted too: how many
examples have which gradient norm (figure 2 of GHM, arXiv:1811.05181), and which of them make up
the whole gradient.  An example is a number in the maps that the term pulls up (an object) or down
(background).
"""

from detlab import cli
from detlab.tools import analysis_flags

if __name__ == "__main__":
    cli.answer_first(analysis_flags.losses(__doc__))  # --help needs no import below

import argparse
import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detlab import contract, errors, types
from detlab.metrics import tables
from detlab.tools import frame, loss_functions

# Family -> the axes that its losses can be drawn against, the default first.
_AXES = {
    "classification": ("probability", "logit"),
    "box": ("shift", "iou"),
    "embedding": ("distance",),
}
_TITLES = {
    "probability": "probability of the true class",
    "logit": "logit of the true class",
    "shift": "shift of the box, sides of the object",
    "iou": "IoU of the box with the object",
    "distance": "distance of two embeddings",
}
_BY = {"classification": "logit", "box": "shift", "embedding": "distance"}
# Where the table gives numbers, and the loss that gradients are compared with.
_AT = {
    "classification": (0.01, 0.1, 0.5, 0.9, 0.99),  # probabilities
    "box": (0.01, 0.1, 0.25, 0.5, 1.0),
    "embedding": (0.1, 0.5, 0.9, 1.5),
}
_REFERENCE = {"classification": "bce", "box": "l1", "embedding": "pull"}
_LARGEST = {"logit": 10.0, "shift": 1.5, "distance": 2.0}
_BATCH = 2  # images at a time
_IMAGES = 16  # by default
_BINS = 20


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, analysis_flags.losses(__doc__))
    analysis_flags.check_losses(args)
    wanted, family = chosen(args)
    axis = args.x or _AXES[family][0]
    if axis not in _AXES[family]:
        raise errors.UserError(
            f"--x is {axis}, but {family} losses can be drawn against {' or '.join(_AXES[family])}."
        )
    with_detector = args.config or args.workdir
    if overrides and not with_detector:
        raise errors.UserError(f"--config.{next(iter(overrides))} needs --config; add it.")

    loaded = frame.load(args, overrides) if with_detector else None
    output = frame.Output("losses", args, loaded.config if loaded else None)
    results = drawn(wanted, family, axis, args.points)
    text = _table(results)
    output.figure(draw(results), "losses")
    if loaded:
        found = learned(loaded, args, output)
        results["gradients"] = found
        output.figure(draw_gradients(found), "gradients")
        text += "\n\n" + _told(found)
    output.close(frame.rounded(results), text)


def chosen(args: argparse.Namespace) -> tuple[list, str]:
    """The losses to draw as (name, Options) pairs, and their family."""
    known = loss_functions.LOSSES
    of_family = [name for name, loss in known.items() if loss.family == args.family]
    names = of_family if args.losses in (None, "all") else args.losses.split(",")
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
            raise errors.UserError(f"--losses: there is no loss {name!r}. {hint}")
    families = list(dict.fromkeys(known[name].family for name in names))
    if len(families) > 1:
        first, second = (
            next(name for name in names if known[name].family == family) for family in families[:2]
        )
        raise errors.UserError(
            f"--losses: {first} is a {families[0]} loss and {second} a {families[1]} loss; draw"
            " them one family at a time."
        )
    lists = {
        "quality": _numbers(args, "quality", 0, 1),
        "alpha": _numbers(args, "alpha", 0, None),
        "gamma": _numbers(args, "gamma", 0, None),
        "beta": _numbers(args, "beta", 0, None),
        "scale": _numbers(args, "scales", 1e-3, 1e3),
    }
    for field in ("quality", "alpha", "gamma", "beta"):
        readers = [name for name, loss in known.items() if field in loss.reads]
        if lists[field] and not set(readers) & set(names):
            raise errors.UserError(
                f"--{field} changes none of {', '.join(names)}; it is for {', '.join(readers)}."
            )
    wanted = []
    for name in names:
        reads = (*known[name].reads, *(("scale",) if families == ["box"] else ()))
        values = [lists[field] or [None] for field in reads]
        for combination in itertools.product(*values):
            given = {k: v for k, v in zip(reads, combination, strict=True) if v is not None}
            wanted.append((name, loss_functions.Options(label=args.label, **given)))
    return wanted, families[0]


def _numbers(args, flag, least, most):
    text = getattr(args, flag)
    try:
        values = [] if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise errors.UserError(
            f"--{flag} is {text!r}; it must be numbers separated by commas."
        ) from None
    for value in values:
        if not value >= least or (most is not None and value > most):
            above = f" and at most {most:g}" if most is not None else ""
            raise errors.UserError(
                f"--{flag} has {value:g}; numbers must be at least {least:g}{above}."
            )
    return values


def _label(name: str, options: Any) -> str:
    """The name of a curve with the options that are not the functions' own."""
    default = loss_functions.Options()._asdict()
    shown = [
        f"{field} {value:g}"
        for field, value in options._asdict().items()
        if value != default[field] and field != "label"
    ]
    return " ".join([name, *shown])


def drawn(wanted: list, family: str, axis: str, points: int) -> dict[str, Any]:
    """Everything that the picture and the table show; see docs/tools.md for the keys.

    Args:
      wanted: pairs of a name and `loss_functions.Options`.
      family: theirs.
      axis: one that the family can be drawn against.
      points: of each curve.
    """
    at = np.array(_AT[family])
    if family == "classification":
        probabilities = (np.arange(points) + 0.5) / points
        x = np.linspace(-_LARGEST["logit"], _LARGEST["logit"], points)
        x = x if axis == "logit" else np.log(probabilities / (1 - probabilities))
        at_x = np.log(at / (1 - at))
    else:
        x, at_x = np.linspace(0, _LARGEST[_BY[family]], points), at
    reference = (_REFERENCE[family], loss_functions.Options(wanted[0][1].label))
    everything = loss_functions.curves([*wanted, reference], np.concatenate([x, at_x]))
    *found, against = everything
    rows, lines = [], []
    for (name, options), curve in zip(wanted, found, strict=True):
        if axis == "probability":
            shown = probabilities
        elif axis == "iou":
            shown = jax.vmap(lambda s, o=options: loss_functions.overlap(s, o.scale))(x)
        else:
            shown = x
        label = _label(name, options)
        value, slope = curve.value, np.abs(curve.gradient)
        lines.append({"loss": label, "x": shown, "value": value[:points], "slope": slope[:points]})
        divisor = np.abs(against.gradient[points:])
        rows.append(
            {
                "loss": label,
                "value": value[points:],
                "slope": slope[points:],
                "relative": slope[points:] / np.where(divisor > 0, divisor, np.nan),
            }
        )
    return {
        "family": family,
        "axis": axis,
        "label": wanted[0][1].label,
        "slope_by": _BY[family],
        "curves": lines,
        "table": {"at": at, "relative_to": _REFERENCE[family], "rows": rows},
    }


def draw(results: dict[str, Any]) -> Any:
    """A matplotlib Figure of `drawn`: losses on the left, gradients on the right."""
    from matplotlib import figure as figure_lib

    figure = figure_lib.Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, curve in enumerate(results["curves"]):
        style = ("-", "--", ":", "-.")[i // 10 % 4]
        # Later curves are thinner, so that equal ones show both colours.
        line = {"color": f"C{i % 10}", "linewidth": 1.2 + 2.4 * (1 - i / len(results["curves"]))}
        left.plot(curve["x"], curve["value"], style, label=curve["loss"], **line)
        # A logarithm has no place for 0.
        slope = np.where(curve["slope"] > 0, curve["slope"], np.nan)
        right.plot(curve["x"], slope, style, **line)
    largest = max(np.nanmax(curve["value"]) for curve in results["curves"])
    left.set_ylim(0, min(largest * 1.05, 6.0))
    right.set_yscale("log")
    top = right.get_ylim()[1]
    right.set_ylim(max(right.get_ylim()[0], top * 1e-6), top)
    kind = ("of background" if results["label"] == 0 else "of an object").strip()
    subject = f"{results['family']} losses"
    left.set_title(f"{subject} {kind}" if results["family"] == "classification" else subject)
    right.set_title(f"absolute gradient by the {results['slope_by']}")
    for axes in (left, right):
        axes.set_xlabel(_TITLES[results["axis"]])
        axes.grid(alpha=0.3)
    left.set_ylabel("loss")
    right.set_ylabel("gradient, logarithmic")
    left.legend(fontsize=8, ncols=1 + len(results["curves"]) // 12)
    return figure


def _table(results):
    """Loss, gradient and relative gradient of every loss at some places."""
    table = results["table"]
    where = "p" if results["family"] == "classification" else results["slope_by"]
    header = [f"at {where} =", *(f"{x:g}" for x in table["at"])]
    blocks = []
    for key, title in (
        ("value", "loss"),
        ("slope", f"gradient by the {results['slope_by']}"),
        ("relative", f"gradient, of that of {table['relative_to']}"),
    ):
        rows = [[row["loss"], *(f"{x:.3g}" for x in row[key])] for row in table["rows"]]
        blocks.append(f"{title}\n{tables.text_table(header, rows)}")
    return "\n\n".join(blocks)


# ------------------------------------------------------------------------------------------------
# The gradients of a detector's loss


class Examples(NamedTuple):
    """The numbers in the maps that a term of the loss pulls up or down."""

    norm: np.ndarray  # [n] 1 - probability of the true class
    slope: np.ndarray  # [n] absolute gradient of the term
    positive: np.ndarray  # [n] bool: pulled up


def learned(loaded: frame.Loaded, args: argparse.Namespace, output: frame.Output) -> dict[str, Any]:
    """Counts the gradients of a term on training images; notes in the output what was read."""
    limit = args.limit or _IMAGES
    source = frame.open_data(loaded.config, "train", limit, loaded.class_names)
    names = terms(loaded, next(frame.batches(source, loaded.config, "train", _BATCH)))
    term = args.term or _preferred(names)
    if term not in names:
        close = difflib.get_close_matches(term, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names)}."
        raise errors.UserError(f"--term: the loss has no {term}. {hint}")
    gradient = jax.jit(of_maps(loaded.detector, term))
    key = jax.random.key(args.seed)
    num_classes = contract.num_classes(loaded.config)
    softmax = set()

    def examples():
        for batch in frame.batches(source, loaded.config, "train", _BATCH):
            found = jax.device_get(gradient(loaded.params, loaded.state, batch, key))
            for values, slopes in zip(*map(jax.tree.leaves, found), strict=True):
                one, of_softmax = read(values, slopes, num_classes)
                softmax.add(of_softmax)
                yield one

    counted = count(examples())
    if not counted["positive"]["examples"] + counted["negative"]["examples"]:
        others = ", ".join(name for name in names if name != term)
        raise errors.UserError(
            f"{term} of {loaded.config.detector} reads no map of scores (a second stage computes"
            f" its scores from features); choose another --term: {others}."
        )
    output.inputs.update(data=loaded.config.data.source, part="train", images=len(source))
    return {
        "detector": loaded.config.detector,
        "term": term,
        "images": len(source),
        "data": loaded.config.data.source,
        "weights": loaded.weights,
        "scores": "softmax" if True in softmax else "sigmoid",
        **counted,
    }


def terms(loaded: frame.Loaded, batch: types.Batch) -> list[str]:
    """The names of the terms of a detector's loss; nothing is computed."""
    _, (metrics, _) = jax.eval_shape(
        loaded.detector.loss, loaded.params, loaded.state, batch, jax.random.key(0)
    )
    return sorted(name for name in metrics if name.startswith("loss/"))


def _preferred(names: Sequence[str]) -> str:
    """The term of the scores: of the RPN in two stages, as the maps have those."""
    for part in ("rpn_cls", "/cls", "heat", "objectness"):
        for name in names:
            if part in name:
                return name
    return names[0]


def of_maps(detector: contract.Detector, term: str) -> Any:
    """The function (params, state, batch, key) -> (maps, gradients of a term by them).

    Features are left out: what is learned through them is not one number an example.
    """

    def compute(params, state, batch, key):
        maps, state = detector.maps(params, state, batch.images, False)
        kept = {k: v for k, v in maps._asdict().items() if k != "features"}

        def value(kept):
            found = maps._replace(**kept)
            _, (metrics, _) = detector.loss_of_maps(params, state, batch, found, key)
            return metrics[term]

        return kept, jax.grad(value)(jax.tree.map(jnp.asarray, kept))

    return compute


def read(values, slopes, num_classes: int) -> tuple[Examples, bool]:
    """The examples in one map, and whether its scores are those of a softmax.

    The gradients of a softmax over the classes and the background add up to 0.

    Args:
      values: [B, H, W, D] logits.
      slopes: [B, H, W, D] gradients of the term.
      num_classes: of the detector, without the background.
    """
    values, slopes = (np.asarray(x, np.float64) for x in (values, slopes))
    used = slopes != 0
    softmax = False
    with np.errstate(over="ignore"):
        score = 1 / (1 + np.exp(-values))
    if used.any() and values.shape[-1] % (num_classes + 1) == 0:
        groups = slopes.reshape(-1, num_classes + 1)
        softmax = np.abs(groups.sum(1)).sum() < 1e-3 * np.abs(groups).sum()
    if softmax:
        logits = values.reshape(-1, num_classes + 1)
        score = np.exp(logits - logits.max(1, keepdims=True))
        score = (score / score.sum(1, keepdims=True)).reshape(values.shape)
    score, slope = score[used], slopes[used]
    positive = slope < 0
    return Examples(np.where(positive, 1 - score, score), np.abs(slope), positive), softmax


def count(parts: Iterable[Examples]) -> dict[str, Any]:
    """Histograms of examples over their gradient norm, by number and by share of the gradient."""
    edges = np.linspace(0, 1, _BINS + 1)
    counts = {name: np.zeros(_BINS, int) for name in ("positive", "negative")}
    sums = {name: np.zeros(_BINS) for name in counts}
    easy, easy_sum = 0, 0.0  # with p > 0.9
    for one in parts:
        for name, mask in (("positive", one.positive), ("negative", ~one.positive)):
            counts[name] += np.histogram(one.norm[mask], edges)[0]
            sums[name] += np.histogram(one.norm[mask], edges, weights=one.slope[mask])[0]
        easy += int((one.norm < 0.1).sum())
        easy_sum += one.slope[one.norm < 0.1].sum()
    number = max(sum(x.sum() for x in counts.values()), 1)
    total = sum(x.sum() for x in sums.values()) or 1.0
    of_kind = {
        name: {
            "examples": int(counts[name].sum()),
            "counts": counts[name],
            "shares": sums[name] / total,
            "share": float(sums[name].sum() / total),
        }
        for name in counts
    }
    shares = {"easy_examples": easy / number, "easy_share": float(easy_sum / total)}
    return {"edges": edges, **of_kind, **shares}


def draw_gradients(found: dict[str, Any]) -> Any:
    """A matplotlib Figure of the histograms of `count`."""
    from matplotlib import figure as figure_lib

    figure = figure_lib.Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.asarray(found["edges"])
    middles, width = (edges[1:] + edges[:-1]) / 2, 0.45 * (edges[1] - edges[0])
    for i, name in enumerate(("positive", "negative")):
        place = middles + (i - 0.5) * width
        left.bar(place, found[name]["counts"], width, label=name)
        right.bar(place, 100 * found[name]["shares"], width, label=name)
    left.set_yscale("log")
    weights = "untrained" if found["weights"] is None else "trained"
    left.set_title(
        f"{found['term']} of {found['detector']}, {weights}, {found['images']} images of"
        f" {found['data']}"
    )
    right.set_title(
        f"p > 0.9: {100 * found['easy_examples']:.1f} % of the examples,"
        f" {100 * found['easy_share']:.1f} % of the gradient"
    )
    left.set_ylabel("examples, logarithmic")
    right.set_ylabel("share of the whole gradient, %")
    for axes in (left, right):
        axes.set_xlabel("gradient norm of cross entropy, 1 - p of the true class")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _told(found):
    rows = [
        [name, str(found[name]["examples"]), f"{100 * found[name]['share']:.1f}"]
        for name in ("positive", "negative")
    ]
    heading = f"{found['term']} on {found['images']} training images"
    table = tables.text_table(("examples", "number", "% of the gradient"), rows)
    return (
        f"{heading}\n{table}\n{100 * found['easy_examples']:.1f} % of the examples have p > 0.9;"
        f" they make up {100 * found['easy_share']:.1f} % of the gradient"
    )


if __name__ == "__main__":
    errors.run_main(main)

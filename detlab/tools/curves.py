"""Draws what several runs logged, in one picture: a panel for each key, a line for each run.

    detlab tools curves runs/first runs/second --output shown
    detlab tools curves runs/* --keys 'loss/*,AP,lr' --smooth 0.9 --output shown

A run is the folder of a training, or its metrics.jsonl.  A key is one of that file, such as
train/loss/cls or eval/AP; `*` stands for anything, and train/ and eval/ may be left out.
"""

from detlab import cli
from detlab.tools import analysis_flags

if __name__ == "__main__":
    cli.answer_first(analysis_flags.curves(__doc__))  # --help needs no import below

import difflib
import fnmatch
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detlab import errors, files
from detlab.metrics import tables
from detlab.run import log
from detlab.tools import frame
from detlab.viz import curves as curves_lib

_PANELS = 12  # at most


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, analysis_flags.curves(__doc__))
    analysis_flags.check_curves(args)
    if overrides:
        raise errors.UserError(f"curves takes no --config.{next(iter(overrides))}; remove it.")
    rows = [read(path) for path in args.runs]
    names = files.unique_names(_name(path) for path in args.runs)
    found = of_runs(dict(zip(names, rows, strict=True)), args.keys.split(","), args.smooth)
    args.runs = [str(path) for path in args.runs]
    output = frame.Output("curves", args, inputs={"runs": args.runs})
    output.figure(draw(found), "curves")
    output.close(frame.rounded(found), _table(found))


def read(path: pathlib.Path) -> list[dict]:
    """The rows that a run logged.

    Raises:
      UserError: there are none.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.exists():
        what = "has no metrics.jsonl" if path.is_dir() else "does not exist"
        raise errors.UserError(f"{path} {what}; name the folder of a training run.")
    rows = log.read_rows(file)
    if not rows:
        raise errors.UserError(f"{file} has no rows yet; wait for the run's first.")
    return rows


def _name(path: pathlib.Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == "metrics.jsonl" else path.name


def of_runs(
    runs: Mapping[str, Sequence[Mapping[str, float]]], patterns: Sequence[str], smooth: float
) -> dict[str, Any]:
    """The values of some keys in some runs.

    Args:
      runs: name -> its rows.
      patterns: of keys.
      smooth: w in 0..1; a value of train/ becomes the mean of all up to it with the weights 1, w,
        w^2 ... backwards.
    Returns:
      key -> run -> steps, values, smoothed, and best, the smallest of train/ or largest of eval/.
    Raises:
      UserError: a pattern matches no key, or there are too many panels.
    """
    known = sorted({key for rows in runs.values() for row in rows for key in row} - {"step"})
    keys = []
    for pattern in patterns:
        matching = [key for key in known if _matches(key, pattern)]
        if not matching:
            short = [key.partition("/")[2] for key in known]
            close = difflib.get_close_matches(pattern, [*known, *short], n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
            raise errors.UserError(f"--keys: no run has {pattern!r}. {hint}")
        keys += matching
    keys = list(dict.fromkeys(keys))
    if len(keys) > _PANELS:
        raise errors.UserError(
            f"--keys matches {len(keys)} keys, more than the {_PANELS} that a picture has room"
            f" for: {', '.join(keys)}."
        )
    found = {}
    for key in keys:
        found[key] = {}
        for name, rows in runs.items():
            steps, values = curves_lib.curve(rows, key)
            if not np.isfinite(values).any():
                continue
            smoothed = smoothly(values, smooth) if key.startswith("train/") else values
            best = np.nanargmax(values) if key.startswith("eval/") else np.nanargmin(values)
            found[key][name] = {
                "steps": steps,
                "values": values,
                "smoothed": smoothed,
                "best": values[best],
                "best_step": steps[best],
                "last": values[np.flatnonzero(np.isfinite(values))[-1]],
            }
    return found


def _matches(key: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(x, pattern) for x in (key, key.partition("/")[2]))


def smoothly(values, weight: float):
    """Means [n] of each value [n] and the earlier ones, which weigh less and less.

    NaN leaves a gap and counts as nothing.

    Args:
      values: [n].
      weight: of a value in the next mean, relative to that value's own.
    """
    total = count = 0.0
    means = []
    for value in np.asarray(values, float):
        total, count = total * weight, count * weight
        if np.isfinite(value):
            total, count = total + value, count + 1
        means.append(total / count if np.isfinite(value) else np.nan)
    return np.array(means)


def draw(found: Mapping[str, Any]) -> Any:
    """A matplotlib Figure of what `of_runs` returned."""
    from matplotlib import figure as figure_lib

    names = list(dict.fromkeys(name for runs in found.values() for name in runs))
    columns = 1 if len(found) < 3 else 2
    rows = -(-len(found) // columns)
    size = (8 if columns == 1 else 12, 3 * rows)
    figure = figure_lib.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (key, runs) in zip(panels, found.items(), strict=False):
        for name, run in runs.items():
            shade = f"C{names.index(name) % 10}"
            style = ("-", "--", ":", "-.")[names.index(name) // 10 % 4]
            marker = "o" if len(run["steps"]) <= 30 else None
            smooth = not np.array_equal(run["values"], run["smoothed"], equal_nan=True)
            if smooth:
                axes.plot(run["steps"], run["values"], style, color=shade, alpha=0.25)
            axes.plot(
                run["steps"],
                run["smoothed"],
                style,
                color=shade,
                marker=marker,
                markersize=4,
                label=name,
            )
        axes.set_title(f"{key}, {len(runs)} of {len(names)} runs", loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in panels[len(found) :]:
        axes.remove()
    return figure


def _table(found):
    rows = [
        [
            key,
            name,
            str(len(run["steps"])),
            f"{run['last']:.4g}",
            f"{run['best']:.4g}",
            str(run["best_step"]),
        ]
        for key, runs in found.items()
        for name, run in runs.items()
    ]
    return tables.text_table(("key", "run", "values", "last", "best", "at step"), rows)


if __name__ == "__main__":
    errors.run_main(main)

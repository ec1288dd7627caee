"""Plots the curves of a training run with matplotlib, without a window."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np


def plot_run(rows: Sequence[Mapping[str, float]], output_png: str | pathlib.Path) -> None:
    """Plots losses, learning rate and average precision against the step.

    Args:
      rows: dicts with `step` and any of `train/loss`, `train/loss/*`, `train/lr`, `eval/AP`,
        `eval/AP50`.  If a step is logged twice, such as after a restart, the last value counts.
        -1 (nothing to average) and non-finite values leave a gap.
      output_png: path to write; its folder is created.
    Raises:
      ValueError: the rows have none of these values.
    """
    from matplotlib import figure as figure_lib  # imported late, so programs start without it

    names = sorted({name for row in rows for name in row})
    terms = [name for name in names if name.startswith("train/loss/")]
    panels = {
        "loss": ["train/loss", *terms],
        "learning rate": ["train/lr"],
        "average precision": ["eval/AP", "eval/AP50"],
    }
    panels = {
        title: [(name, *curve(rows, name)) for name in wanted if name in names]
        for title, wanted in panels.items()
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        raise ValueError("the rows have no train/loss, train/lr, eval/AP or eval/AP50")

    # Not pyplot, which keeps figures in a global list and may look for a display.
    figure = figure_lib.Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, steps, values in curves:
            # Few values, such as those of evaluations, get markers: a single one has no line.
            axis.plot(
                steps,
                values,
                label=name,
                linewidth=2 if name in ("train/loss", "eval/AP") else 1,
                marker="o" if len(steps) <= 30 else None,
                markersize=4,
            )
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize=8)
        if title == "average precision":
            axis.set_ylim(0, 1)
        elif title == "loss":
            axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("step")
    output_png = pathlib.Path(output_png)
    output_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_png, dpi=120)


def curve(rows: Sequence[Mapping[str, float]], name: str):
    """Steps [n], ascending, and values [n] of one quantity; NaN where there is none to show."""
    points = {row["step"]: row[name] for row in rows if name in row}
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps.tolist()], float)
    shown = np.isfinite(values) & ((values != -1) | (not name.startswith("eval/")))
    return steps, np.where(shown, values, np.nan)

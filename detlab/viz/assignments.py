"""Draws which predictions learn which objects: one panel a pyramid level, without a window.

The photograph is dark and grey, so that colours stand out.  Everything that belongs to an object
has its colour; what is ignored is grey.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.viz import boxes as draw_lib

DIM = 0.42  # brightness of the photograph
HEAT_COLOURS = ((0.15, 0.85, 1.0), (1.0, 0.55, 0.05))  # of the first and the second heat map
GREYS = {"ignored": "#a8a8a8", "negative": "#ffffff"}
WIDTH = 8.4  # inches of a picture of one assignment


class Objects(NamedTuple):
    """The objects of an image, each with a colour of its own."""

    boxes: Any  # [n, 4] xyxy px
    names: Sequence[str]
    ignored: Any  # [n] bool: crowd or difficult, drawn dashed


class Panel(NamedTuple):
    """What one level shows."""

    heading: str
    note: str  # second line
    boxes: Any  # [P, 4] xyxy px: what learns an object
    owner: Any  # [P] int, position of the object
    filled: bool  # the boxes are the cells of points
    rings: Any  # [R, 2] x, y px: points inside an object that do not learn it
    ring_owner: Any  # [R] int
    dots: Mapping[str, Any]  # a key of GREYS -> [n, 2] x, y px
    spacing: float | None = None  # of the points, px: marks are smaller than half of it
    heat: Sequence[Any] = ()  # one or two maps [h, w], 0..1
    extent: tuple[float, ...] = ()  # left, right, bottom, top of the maps, px


class Row(NamedTuple):
    """The panels of one assignment of one detector."""

    heading: str
    panels: Sequence[Panel]


def draw(image, objects: Objects, rows: Sequence[Row], title: str, legend: str) -> Any:
    """A matplotlib Figure.

    One row fills two or three columns with the objects and the levels.  Several rows, of detectors
    to compare, are drawn one below the other, the objects first in each.

    Args:
      image: [H, W, 3] uint8 RGB.
      objects: also the order of the colours.
      rows: one or more.
      title: above everything.
      legend: below everything.
    """
    from matplotlib import figure as figure_lib  # imported late, so programs start without it

    height, width = image.shape[:2]
    if len(rows) == 1:
        cells = [None, *rows[0].panels]
        columns = 2 if len(cells) in (2, 4) else 3
        table = [cells[i : i + columns] for i in range(0, len(cells), columns)]
        inches = WIDTH
    else:
        columns = 1 + max(len(row.panels) for row in rows)
        table = [[None, *row.panels] for row in rows]
        inches = max(WIDTH, 2.4 * columns)
    of_panel = inches / columns * height / width + 0.36  # two lines of text
    figure = figure_lib.Figure(figsize=(inches, len(table) * of_panel + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04)
    axes = figure.subplots(len(table), columns, squeeze=False)
    dark = np.repeat((image @ (0.299, 0.587, 0.114))[..., None], 3, axis=2) * (DIM / 255)
    shown = draw_lib.draw(
        image,
        objects.boxes,
        np.arange(len(objects.boxes)),
        objects.names,
        ignored=objects.ignored,
    )
    for i, cells in enumerate(table):
        for axis, panel in zip(axes[i], cells, strict=False):
            axis.imshow(shown if panel is None else dark, extent=(0, width, height, 0))
            if panel is None:
                text = rows[i].heading if len(rows) > 1 else rows[0].heading
                axis.set_title(f"{text}\n", fontsize=9, loc="left", fontweight="bold")
            else:
                _draw_panel(axis, panel, objects, 72 * inches / columns / width)
            axis.set(xlim=(0, width), ylim=(height, 0))
        for axis in axes[i]:
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.supxlabel(legend, fontsize=8, x=0.01, ha="left")
    return figure


def colours(owner) -> np.ndarray:
    """[n, 3] RGB in 0..1, those of the objects at positions `owner` [n]."""
    table = np.array([draw_lib.colour(i) for i in owner], float).reshape(-1, 3)
    return table / 255


def _draw_panel(axis, panel, objects, scale):
    """Draws a level; `scale`: points of print a px."""
    from matplotlib import collections, patches

    most = (
        np.inf if panel.spacing is None else (0.45 * panel.spacing * scale) ** 2
    )  # area of a mark

    axis.set_title(f"{panel.heading}\n{panel.note}", fontsize=8, loc="left")
    for heat, colour in zip(panel.heat, HEAT_COLOURS, strict=False):
        rgba = np.empty((*heat.shape, 4))
        rgba[..., :3], rgba[..., 3] = colour, 0.85 * np.clip(heat, 0, 1)
        axis.imshow(rgba, extent=panel.extent, interpolation="nearest")
    for kind, points in panel.dots.items():
        axis.scatter(*points.T, s=min(2.5, most / 4), color=GREYS[kind], linewidths=0)
    for i, (box, ignored) in enumerate(zip(objects.boxes, objects.ignored, strict=True)):
        shade = np.array(draw_lib.GREY) / 255 if ignored else colours([i])[0]
        style = dict(linewidth=1.6, linestyle=(0, (4, 3)) if ignored else "solid")
        size = box[2] - box[0], box[3] - box[1]
        axis.add_patch(patches.Rectangle(box[:2], *size, fill=False, edgecolor=shade, **style))
    if len(panel.rings):
        axis.scatter(
            *panel.rings.T,
            s=min(6, most),
            facecolors="none",
            edgecolors=colours(panel.ring_owner),
            linewidths=min(0.6, 0.2 * most**0.5),
        )
    if not len(panel.boxes):
        return
    shades = colours(panel.owner)
    shapes = [patches.Rectangle(b[:2], b[2] - b[0], b[3] - b[1]) for b in panel.boxes]
    if panel.filled:
        drawn = collections.PatchCollection(shapes, facecolor=shades, alpha=0.55, linewidth=0)
    else:
        alpha = 0.65 * min(1.0, (40 / len(shades)) ** 0.5)  # many boxes would hide the image
        edges = np.concatenate([shades, np.full((len(shades), 1), alpha)], axis=1)
        drawn = collections.PatchCollection(
            shapes, facecolor="none", edgecolor=edges, linewidth=0.7
        )
    axis.add_collection(drawn)
    middles = (panel.boxes[:, :2] + panel.boxes[:, 2:]) / 2
    edge = dict(edgecolors="white", linewidths=min(0.4, 0.12 * most**0.5))
    axis.scatter(*middles.T, s=min(10, 1.5 * most), color=shades, zorder=3, **edge)

"""Draws heat maps beside an image, without a window."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH = 8.4  # inches
BAR = 0.4  # inches of a colour bar


class Panel(NamedTuple):
    """A map [h, w], or a picture [h, w, 3] in 0..1 that needs no scale."""

    heading: str
    note: str  # second line
    values: Any
    scale: tuple[float, float] | None  # ends of the colours; None: a constant map, or a picture
    overlay: bool = False  # transparent over the image where the values are small


def draw(
    image: np.ndarray,
    detections: np.ndarray,
    panels: Sequence[Panel],
    canvas: tuple[int, int],
    title: str,
    box: Any = None,
) -> Any:
    """A matplotlib Figure: the image with its detections, then a panel for each map.

    Args:
      image: [H, W, 3] uint8 RGB, the content of the canvas.
      detections: the same image with boxes, of any size.
      panels: maps that span the canvas.
      canvas: (height, width) px, at least those of the image.
      title: above everything.
      box: [4] px, drawn on every map, or None.
    """
    from matplotlib import figure as figure_lib  # imported late, so programs start without it
    from matplotlib import patches

    height, width = image.shape[:2]
    columns = 2 if len(panels) in (1, 3) else 3
    rows = -(-(1 + len(panels)) // columns)
    of_panel = (WIDTH / columns - BAR) * height / width + 0.36  # two lines of text
    figure = figure_lib.Figure(figsize=(WIDTH, rows * of_panel + 0.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    axes[0].imshow(detections, extent=(0, width, height, 0))
    axes[0].set_title("detections\n", fontsize=8, loc="left", fontweight="bold")
    grey = np.repeat((image @ (0.299, 0.587, 0.114))[..., None], 3, axis=2) / 255
    extent = (0, canvas[1], canvas[0], 0)
    for axis, panel in zip(axes[1:], panels, strict=False):
        axis.set_title(f"{panel.heading}\n{panel.note}", fontsize=8, loc="left")
        shown = dict(extent=extent, interpolation="nearest")
        if panel.values.ndim == 3:
            axis.imshow(panel.values, **shown)
        elif panel.scale is None:
            axis.imshow(np.full((1, 1, 3), 0.85), extent=extent)
            text = f"constant: {panel.values.flat[0]:.4g}"
            axis.text(width / 2, height / 2, text, ha="center", va="center", fontsize=11)
        else:
            low, high = panel.scale
            shown |= dict(vmin=low, vmax=high, cmap="inferno" if panel.overlay else "viridis")
            if panel.overlay:
                axis.imshow(grey, extent=(0, width, height, 0))
                part = np.clip((panel.values - low) / (high - low), 0, 1)
                shown["alpha"] = 0.25 + 0.6 * part
            beside = axis.inset_axes([1.015, 0, 0.025, 1])  # as high as the map
            bar = figure.colorbar(axis.imshow(panel.values, **shown), cax=beside, format="%.3g")
            bar.ax.tick_params(labelsize=6)
        if box is not None:
            size = box[2] - box[0], box[3] - box[1]
            for shade, line in (("black", 2.2), ("white", 1.1)):
                style = dict(fill=False, edgecolor=shade, linewidth=line)
                axis.add_patch(patches.Rectangle(box[:2], *size, **style))
    for axis in axes:
        axis.set(xlim=(0, width), ylim=(height, 0))
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure

"""What the training targets of a detector say about each object: numbers, and panels to draw.

Everything is read from `types.Targets`.  Its entries have one of three forms:

  points  cells that tile a level, one prediction each (FCOS)
  boxes   anchors and RoIs, which overlap
  maps    corners: `values` has heat maps, and the entries are the objects themselves
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from detlab import types
from detlab.viz import assignments as draw_lib

# Sides of objects on the canvas, sqrt(area) px; the last three are COCO's sizes.
SIZES = {"tiny": (0, 16), "small": (16, 32), "medium": (32, 96), "large": (96, float("inf"))}
MOST = 512  # ignored or negative entries of an image that are drawn; more would hide the others
KINDS = ("positive", "negative", "ignored")
FORMS = {"points": "points", "boxes": "boxes", "maps": "pairs of corners"}  # in sentences
HEATS = "_heat"  # ends the names of heat maps among the values


class Entries:
    """The entries of an assignment for one image.

    Attributes:
      form: see above.
      boxes: [M, 4] float xyxy px.
      middles: [M, 2] x, y px.
      level, matched: [M] int.
      positive, negative, ignored: [M] bool; empty slots and cells in padding are none of them.
    """

    def __init__(self, targets: types.Targets, image_size: Sequence[int]):
        """Takes the targets of a batch of one image, on the host, and its height and width, px."""
        first = types.Targets(*(np.asarray(x)[0] for x in targets[:4]), values=targets.values)
        self.boxes = first.boxes.astype(float)
        self.level, self.matched = first.level, first.matched
        self.middles = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        self.positive, self.negative = first.status == 1, first.status == 0
        # Entries that no negative ever takes are a list of positives, in which -1 is an empty slot.
        slots = not self.negative.any()
        there = (self.boxes[:, 2] > self.boxes[:, 0]) & (self.middles < image_size[::-1]).all(1)
        self.ignored = (first.status == -1) & there & (not slots)
        self.form = "boxes"
        if any(name.endswith(HEATS) for name in targets.values):
            self.form = "maps"
        elif self._tile():
            self.form = "points"

    def levels(self) -> int:
        """The number of levels on which the image has entries."""
        return int(self.level.max(initial=-1)) + 1

    def stride(self, level: int) -> float | None:
        """Distance of neighbouring entries of a level, px; None if they are on no grid."""
        xs, ys = (np.unique(self.middles[self.level == level, axis].round(2)) for axis in (0, 1))
        count = len(np.unique(self.middles[self.level == level].round(2), axis=0))
        steps = np.diff(xs)
        regular = len(steps) and np.ptp(steps) < 0.02 and count == len(xs) * len(ys)
        return float(steps[0].round(2)) if regular else None

    def _tile(self) -> bool:
        """Whether the boxes of each level lie side by side."""
        strides = [self.stride(level) for level in range(self.levels())]
        if not any(strides):
            return False
        width = self.boxes[:, 2] - self.boxes[:, 0]
        return all(
            stride is None or np.allclose(width[self.level == level], stride, atol=0.02)
            for level, stride in enumerate(strides)
        ) and len(np.unique(self.boxes, axis=0)) == len(self.boxes)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [n] of boxes [n, 4] in pairs; 0 if both have no area."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    total = sum((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)) - common
    return common / np.where(total > 0, total, 1)


def of_objects(entries: Entries, boxes, levels: int) -> list[dict[str, Any]]:
    """For each object of `boxes` [n, 4] px: what learns it.

    `positives` and `points_inside` (different middles of entries that lie in the box) have a number
    a level.  `mean_iou` and `min_iou` are of the positives with the object: None if there are none
    or the entries are not boxes.
    """
    rows = []
    for slot, box in enumerate(np.asarray(boxes, float)):
        own = entries.positive & (entries.matched == slot)
        overlaps = iou(entries.boxes[own], np.tile(box, (int(own.sum()), 1)))
        measured = entries.form == "boxes" and own.any()
        inside = _inside(entries.middles, box)
        rows.append(
            {
                "side_px": round(float(np.sqrt((box[2:] - box[:2]).prod())), 1),
                "positives": np.bincount(entries.level[own], minlength=levels).tolist(),
                "points_inside": [
                    len(np.unique(entries.middles[inside & (entries.level == level)], axis=0))
                    for level in range(levels)
                ],
                "mean_iou": round(float(overlaps.mean()), 4) if measured else None,
                "min_iou": round(float(overlaps.min()), 4) if measured else None,
            }
        )
    return rows


def summary(
    targets: Sequence[types.Targets],
    batches: Sequence[types.Batch],
    class_names: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:
    """The numbers of one assignment of some images, as the JSON has them.

    Args:
      targets: of batches of one image each, on the host.
      batches: the same images.
      class_names: by label.
      names: of the images.
    """
    found = [Entries(x, batch.image_size[0]) for x, batch in zip(targets, batches, strict=True)]
    levels = max(entries.levels() for entries in found)
    objects, counts = [], []
    for entries, batch, name in zip(found, batches, names, strict=True):
        for slot, row in enumerate(of_objects(entries, batch.boxes[0], levels)):
            if batch.valid[0][slot]:
                label = class_names[batch.labels[0][slot]]
                box = [round(float(x), 2) for x in batch.boxes[0][slot]]
                objects.append({"image": name, "class": label, "box": box, **row})
        kinds = {kind: getattr(entries, kind) for kind in KINDS}
        counts.append(
            [
                {
                    kind: int((is_kind & (entries.level == level)).sum())
                    for kind, is_kind in kinds.items()
                }
                for level in range(levels)
            ]
        )
    of_levels = []
    for level in range(levels):
        sides = [_sides(entries.boxes[entries.level == level]) for entries in found]
        sides = np.concatenate(sides)
        of_levels.append(
            {
                "level": level,
                "stride_px": found[0].stride(level),
                "sides_px": [round(float(x), 1) for x in (sides.min(), sides.max())]
                if len(sides)
                else None,
                **{kind: sum(c[level][kind] for c in counts) for kind in counts[0][level]},
            }
        )
    totals = {
        kind: sum(row[kind] for row in of_levels) for kind in ("positive", "negative", "ignored")
    }
    return {
        "form": found[0].form,
        "images": len(found),
        **totals,
        **_statistics(objects),
        "sizes": {
            size: _statistics([o for o in objects if low <= o["side_px"] < high])
            for size, (low, high) in SIZES.items()
        },
        "levels": of_levels,
        "objects": objects,
    }


def _statistics(objects: Sequence[dict]) -> dict[str, Any]:
    count = np.array([sum(row["positives"]) for row in objects])
    overlaps = [row["mean_iou"] for row in objects if row["mean_iou"] is not None]
    without = int((count == 0).sum())
    there = len(objects) > 0
    return {
        "num_objects": len(objects),
        "without_positive": without,
        "share_without": round(without / len(objects), 4) if there else None,
        "positives_per_object": {
            "mean": round(float(count.mean()), 2),
            "median": float(np.median(count)),
            "min": int(count.min()),
            "max": int(count.max()),
        }
        if there
        else None,
        "mean_iou": round(float(np.mean(overlaps)), 4) if overlaps else None,
    }


def table(found: dict[str, Any]) -> str:
    """A summary as text."""
    share = 100 * (found["share_without"] or 0)
    lines = [
        f"{found['positive']} positive, {found['negative']} negative and {found['ignored']} ignored"
        f" {FORMS[found['form']]} in {found['images']} images; nothing learns"
        f" {found['without_positive']} of {found['num_objects']} objects ({share:.1f} %)",
        f"{'side on the canvas':20}{'objects':>9}{'without':>9}{'positives: mean':>17}{'median':>8}"
        f"{'min':>6}{'max':>6}{'mean IoU':>10}",
    ]
    rows = {
        f"{name} {low}-{high} px" if high < float("inf") else f"{name} {low} px or more": found[
            "sizes"
        ][name]
        for name, (low, high) in SIZES.items()
    }
    for name, row in {**rows, "all": found}.items():
        many = row["positives_per_object"]
        numbers = (
            ""
            if many is None
            else (f"{many['mean']:17.1f}{many['median']:8g}{many['min']:6}{many['max']:6}")
        )
        overlap = "" if row["mean_iou"] is None else f"{row['mean_iou']:10.3f}"
        lines.append(
            f"{name:20}{row['num_objects']:9}{row['without_positive']:9}{numbers}{overlap}".rstrip()
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------
# Panels


def panels(
    name: str, all_targets: dict[str, types.Targets], batch: types.Batch, args: argparse.Namespace
) -> list[draw_lib.Panel]:
    """One panel a level of the assignment `name` of an image.

    Args:
      name: a key of `all_targets`.
      all_targets: of a batch of one image, on the host.
      batch: that batch.
      args: has `points`: draw points alone, with rings where they do not learn their object.
    """
    targets = all_targets[name]
    entries = Entries(targets, batch.image_size[0])
    if entries.form == "maps":
        return _heat_panels(targets, entries, all_targets, batch)
    kinds = {kind: getattr(entries, kind) for kind in draw_lib.GREYS}
    found = []
    for level in range(entries.levels()):
        here = entries.level == level
        own = here & entries.positive
        count = {kind: int((here & is_kind).sum()) for kind, is_kind in kinds.items()}
        dots = {
            kind: np.unique(entries.middles[here & is_kind], axis=0)
            for kind, is_kind in kinds.items()
            if count[kind] and (is_kind.sum() <= MOST or args.points)
        }
        rings, ring_owner = np.zeros((0, 2)), np.zeros(0, int)
        boxes, filled = entries.boxes[own], entries.form == "points"
        if args.points:
            rings, ring_owner = _rings(entries, here, batch)
            within = {tuple(x) for x in rings}
            dots = {
                kind: np.array([x for x in p if tuple(x) not in within]).reshape(-1, 2)
                for kind, p in dots.items()
            }
            boxes, filled = np.tile(entries.middles[own], 2), False
        words = [f"{number:,} {kind}" for kind, number in count.items() if number]
        stride, sides = entries.stride(level), _sides(entries.boxes[here])
        heading = f"level {level}: {int(own.sum())} positive"
        if entries.form == "points":
            heading += f", stride {stride or sides[0]:g} px"
        elif len(sides):
            heading += f", sides {_range(sides)} px"
        found.append(
            draw_lib.Panel(
                heading,
                ", ".join(words),
                boxes,
                entries.matched[own],
                filled,
                rings,
                ring_owner,
                dots,
                stride,
            )
        )
    return found


def _rings(entries, here, batch):
    """(middles [R, 2], objects [R]) of points in an object that learn no object.

    A point in several objects belongs to the smallest.
    """
    taken = {tuple(x) for x in entries.middles[here & entries.positive]}
    points = [x for x in np.unique(entries.middles[here], axis=0) if tuple(x) not in taken]
    points = np.array(points).reshape(-1, 2)
    boxes = np.where(batch.valid[0][:, None], batch.boxes[0], 0).astype(float)
    within = np.stack([_inside(points, box) for box in boxes])  # [G, R]
    size = np.where(within, _sides(boxes)[:, None], np.inf)
    some = within.any(0)
    return points[some], size.argmin(0)[some]


def _heat_panels(targets, entries, all_targets, batch):
    """A panel for each level of the heat maps of corners.

    Maps are [1, H, W, C] of the canvas, or [1, N] or [1, N, C] of the N entries of another
    assignment.
    """
    # Top left before bottom right: programs sort the names.
    names = sorted((n for n in targets.values if n.endswith(HEATS)), reverse=True)
    heats = {name: np.asarray(targets.values[name])[0] for name in names}
    kinds = " and ".join(name.removesuffix(HEATS).replace("_", " ") for name in heats)
    shape = next(iter(heats.values())).shape
    empty = dict(boxes=np.zeros((0, 4)), owner=np.zeros(0, int), filled=False)
    empty |= dict(rings=np.zeros((0, 2)), ring_owner=np.zeros(0, int), dots={})
    if len(shape) == 3:
        height, width = batch.images.shape[1:3]
        maps = [heat.max(-1) for heat in heats.values()]
        note = f"{shape[0]} x {shape[1]} cells"
        extent = (0, width, height, 0)
        peaks = sum(int((heat == 1).sum()) for heat in heats.values())
        return [
            draw_lib.Panel(f"{kinds}: {peaks} corners", note, **empty, heat=maps, extent=extent)
        ]
    places = next(
        Entries(other, batch.image_size[0])
        for other in all_targets.values()
        if other.status.shape[1] == shape[0] and not any(n.endswith(HEATS) for n in other.values)
    )
    found = []
    for level in range(places.levels()):
        here = places.level == level
        xs, ys = (np.unique(places.middles[here, axis].round(2)) for axis in (0, 1))
        step = places.stride(level) or max(batch.images.shape[1:3])  # px; a level of one cell
        maps = [heat[here].reshape(len(ys), len(xs)) for heat in heats.values()]
        extent = (xs[0] - step / 2, xs[-1] + step / 2, ys[-1] + step / 2, ys[0] - step / 2)
        peaks = sum(int((heat[here] == 1).sum()) for heat in heats.values())
        heading, note = f"level {level}: {peaks} corners", f"stride {step:g} px"
        found.append(draw_lib.Panel(heading, note, **empty, heat=maps, extent=extent))
    return found


def legend(rows: Sequence[draw_lib.Row], points: bool) -> str:
    """What the marks of a picture mean."""
    shown = [panel for row in rows for panel in row.panels]
    words = ["Outline: object"]
    if any(len(panel.boxes) for panel in shown):
        words.append("dot of its colour: learns it")
        if any(not panel.filled for panel in shown) and not points:
            words.append("thin box: its anchor or RoI")
    if points:
        words.append("ring: point in it that does not")
    left_out = []
    for kind, shade in (("ignored", "grey"), ("negative", "white")):
        there = [panel for panel in shown if kind in panel.note]
        drawn = [panel for panel in there if kind in panel.dots]
        some = "" if len(drawn) == len(there) else " (too many are not drawn)"
        words += [f"{shade} dot: {kind}{some}"] if drawn else []
        left_out += [kind] if there and not drawn else []
    if any(len(panel.heat) for panel in shown):
        words.append("blue and orange: heat of top left and bottom right corners")
    if left_out:
        words.append(f"too many to draw: {' and '.join(left_out)}")
    return "; ".join(words)


def _inside(points, box):
    """Which points [n, 2] are strictly inside a box [4]: [n] bool."""
    return ((points > box[:2]) & (points < box[2:])).all(1)


def _sides(boxes):
    """sqrt(area) px [n] of boxes [n, 4]."""
    return np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1))


def _range(sides):
    low, high = round(float(sides.min())), round(float(sides.max()))
    return f"{low}" if low == high else f"{low}-{high}"

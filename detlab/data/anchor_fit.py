"""Fits anchors to the objects of a data set and measures the fit, as in YOLOv5.

Reference: ultralytics' `autoanchor`: k-means of widths and heights, then random changes, which are
kept if the fit improves.  The worse side decides how well an anchor fits: the similarity of two
boxes is the minimum of w / w', w' / w, h / h' and h' / h.  In YOLOv5, an anchor may learn an object
if their similarity is above 1 / 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.data import augment, plan
from detlab.data import settings as settings_lib

LEAST = 2.0  # px: least side of an anchor; objects with both sides smaller are ignored
_STARTS = 5  # k-means runs; the best one is used
_ROUNDS = 30  # at most, in each run
_MUTATED = 0.9  # probability that a number changes in a generation
_SIGMA = 0.1  # standard deviation of the relative change
_CHANGE = (0.3, 3.0)  # least and largest factor of a change


class Fit(NamedTuple):
    """How well anchors fit objects."""

    best_recall: float  # share of objects that some anchor may learn: the best possible recall
    anchors_per_object: float  # mean number of anchors that may learn an object
    fitness: float  # mean similarity with the best anchor; 0 for objects that none may learn


def object_sizes(
    source: Any, canvases: Sequence[tuple[int, int]], resize: str | tuple[int, int] = "fit"
):
    """Sizes of the objects to learn on their canvas: [n, 2] float64 width, height px.

    Reads annotations only.  Objects without area are dropped.

    Args:
      source: any source.
      canvases: (height, width) px; each image uses the one that suits it best.
      resize: see `settings.Settings`.
    Raises:
      DataError: the source has no images.
      ValueError: `resize` is unknown.
    """
    augment.resizer(settings_lib.Settings(canvases, 0, 0, resize))  # raises if `resize` is unknown
    sizes = plan.source_sizes(source)
    found = [np.zeros((0, 2))]
    for canvas, group in zip(canvases, plan.group_by_canvas(sizes, canvases), strict=True):
        for i in group.tolist():
            annotation = source.annotation(i)
            boxes = annotation["boxes"][~annotation["ignore"]].astype(np.float64)
            found.append((boxes[:, 2:] - boxes[:, :2]) * _scale(sizes[i], canvas, resize))
    found = np.concatenate(found)
    return found[(found > 0).all(axis=1)]


def _scale(size, canvas, resize):
    """Factors [2] by which width and height of an image change on its canvas."""
    ratios = np.array(canvas) / size
    if resize == "stretch":
        return ratios[::-1]
    if resize in ("fit", "letterbox"):
        return np.full(2, ratios.min())
    long, short = resize
    return np.full(2, min(*ratios, long / size.max(), short / size.min()))


def check(sizes, anchors, ratio: float = 4.0) -> Fit:
    """Measures how well anchors fit objects.

    Args:
      sizes: [n, 2] width, height px of the objects.
      anchors: [k, 2] width, height px.
      ratio: largest ratio of sides at which an anchor may learn an object; 4 in YOLOv5.
    Raises:
      ValueError: there are no objects or no anchors, or a side is not above 0.
    """
    objects, anchors = _logs("object", sizes), _logs("anchor", anchors)
    distances = np.stack([_distance(objects, anchor) for anchor in anchors])  # [k, n]
    best = distances.min(axis=0)
    near = np.log(ratio)
    return Fit(
        best_recall=float((best < near).mean()),
        anchors_per_object=float((distances < near).sum(axis=0).mean()),
        fitness=_fitness(best, near),
    )


def fit(
    sizes, num_anchors: int, rng: np.random.Generator, ratio: float = 4.0, generations: int = 1000
):
    """Fits anchors to objects: k-means, then `generations` of random changes.

    The same generator gives the same anchors.  Their fitness is never below that of `k_means`.

    Args:
      sizes: [n, 2] width, height px of the objects.
    Returns:
      [k, 2] float64 width, height px, in ascending order of area.
    Raises:
      ValueError: see `check`, or there are fewer objects than anchors.
    """
    _logs("object", sizes)
    sizes = np.asarray(sizes, np.float64)
    sizes = sizes[(sizes >= LEAST).any(axis=1)]
    if len(sizes) < num_anchors:
        raise ValueError(
            f"{len(sizes)} objects are {LEAST:g} px or larger, too few for {num_anchors} anchors"
        )
    anchors = np.maximum(k_means(sizes, num_anchors, rng), LEAST)
    objects, near = _logs("object", sizes), np.log(ratio)

    def fitness(anchors):
        best = np.full(len(objects), np.inf, np.float32)
        for anchor in np.log(anchors).astype(np.float32):
            np.minimum(best, _distance(objects, anchor), out=best)
        return _fitness(best, near)

    best = fitness(anchors)
    for _ in range(generations):
        factors = np.ones_like(anchors)
        while (factors == 1).all():
            changed = rng.random(anchors.shape) < _MUTATED
            normal = rng.standard_normal(anchors.shape)
            factors = np.clip(1 + changed * rng.random() * normal * _SIGMA, *_CHANGE)
        candidate = np.maximum(anchors * factors, LEAST)
        found = fitness(candidate)
        if found > best:
            anchors, best = candidate, found
    return anchors[np.argsort(anchors.prod(axis=1))]


def k_means(sizes, num_anchors: int, rng: np.random.Generator):
    """Cluster centres [k, 2] of object sizes [n, 2], width and height in px.

    Widths and heights are first divided by their standard deviations.  Lloyd's algorithm runs from
    several k-means++ starts (Arthur and Vassilvitskii, 2007), and the best run is used.
    """
    spread = sizes.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    points = sizes / spread
    runs = [_lloyd(points, _spread_out(points, num_anchors, rng)) for _ in range(_STARTS)]
    centres, _ = min(runs, key=lambda run: run[1])
    return centres * spread


def _spread_out(points, count, rng):
    """Draws points with probability proportional to the squared distance to the nearest drawn."""
    centres = [points[rng.integers(len(points))]]
    distance = ((points - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count:
        total = distance.sum()
        chances = distance / total if total > 0 else None  # all points are taken, so any will do
        centres.append(points[rng.choice(len(points), p=chances)])
        distance = np.minimum(distance, ((points - centres[-1]) ** 2).sum(axis=1))
    return np.array(centres)


def _lloyd(points, centres):
    """The centres after Lloyd's algorithm, and the mean squared distance to the nearest centre."""
    nearest = None
    for _ in range(_ROUNDS):
        squares = np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres])  # [k, n]
        before, nearest = nearest, squares.argmin(axis=0)
        if before is not None and (nearest == before).all():
            break
        counts = np.bincount(nearest, minlength=len(centres))
        sums = np.stack(
            [np.bincount(nearest, points[:, axis], len(centres)) for axis in (0, 1)], axis=1
        )
        # A centre without points stays where it is.
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return centres, squares.min(axis=0).mean()


def _logs(what, sizes):
    """Logarithms [n, 2] float32 of sizes; they turn similarity into a distance."""
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    if not len(sizes):
        raise ValueError(f"there are no {what}s")
    if not (sizes > 0).all() or not np.isfinite(sizes).all():
        bad = sizes[~((sizes > 0) & np.isfinite(sizes)).all(axis=1)][0]
        raise ValueError(
            f"an {what} has the size {bad[0]:g} x {bad[1]:g} px; both sides must be above 0"
        )
    return np.log(sizes).astype(np.float32)


def _distance(objects, anchor):
    """Minus the logarithm of an anchor's similarity with each object, [n]."""
    return np.abs(objects - anchor).max(axis=1)


def _fitness(best, near):
    """Fitness of anchors, given the distance of each object to its nearest anchor."""
    return float(np.where(best < near, np.exp(-best), 0).mean(dtype=np.float64))

"""The anchors of a detector as they lie on a canvas, found in its training targets.

Detectors make their anchors from different fields.  What all share is `Detector.targets`: most
list every anchor as an entry, whatever the image shows.  YOLOv5 lists only the anchors that learn;
its sizes are read from the field `anchor_sizes`, and the cells from the shapes of its maps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from detlab import contract, errors, types
from detlab.run import state as state_lib

_NEAR = 0.05  # px; middles of anchors that differ less are the same but for rounding


class Level(NamedTuple):
    """The anchors of a pyramid level on a canvas."""

    stride: float  # px between cells; of a level with one cell, twice that of the level before
    x: np.ndarray  # [Wl] middles of the anchors, px, ascending
    y: np.ndarray  # [Hl]
    sizes: np.ndarray  # [A, 2] width, height px of the anchors of a cell


class Positives(NamedTuple):
    """The entries that learn objects, for a batch."""

    image: np.ndarray  # [n] row of the batch
    slot: np.ndarray  # [n] of the object
    level: np.ndarray  # [n]


class Anchors:
    """Finds a detector's anchors and which of them learn the objects of a batch.

    Attributes:
      assignment: the name of the targets whose entries are the anchors.
    """

    def __init__(self, config: config_dict.ConfigDict, params: Any = None, state: Any = None):
        """Without variables, those are zero: most assignments do not depend on the network.

        Raises:
          UserError: the detector has no anchors, found with the first batch.
        """
        self.config, self.detector = config, contract.build(config)
        self.assignment = None
        self._variables = (params, state)
        if params is None:
            shapes = jax.eval_shape(
                self.detector.init, jax.random.key(0), state_lib.example_images(config)
            )
            self._variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        self._compiled, self._levels = {}, {}

    def levels(self, batch: types.Batch) -> list[Level]:
        """The anchors on the canvas of a batch, finest level first."""
        canvas = batch.images.shape[1:3]
        if canvas not in self._levels:
            self._levels[canvas] = self._levels_of(batch)
        return self._levels[canvas]

    def _levels_of(self, batch):
        if self.assignment is None:
            self.assignment = self._find(batch)
        if self.assignment:
            found = self._targets((self.assignment,), batch)[self.assignment]
            levels = _levels(found.boxes[0], found.level[0])
            if all(len(x.sizes) == 1 and np.allclose(x.sizes, x.stride, atol=0.01) for x in levels):
                raise self._none()  # the cells of points
            return levels
        sizes = contract.field(self.config, "anchor_sizes")
        if sizes is None:
            raise self._none()
        levels = []
        for (rows, columns), of_level in zip(self.shapes(batch), sizes, strict=True):
            stride = batch.images.shape[2] / columns
            x, y = ((np.arange(n) + 0.5) * stride for n in (columns, rows))
            levels.append(Level(stride, x, y, np.array(of_level, float)))
        return levels

    def shapes(self, batch: types.Batch) -> list[tuple[int, int]]:
        """(Hl, Wl) of the maps of predictions, finest first."""
        maps, _ = jax.eval_shape(
            lambda *given: self.detector.maps(*given, False), *self._variables, batch.images
        )
        leaves = jax.tree.leaves(maps._replace(features=()))
        return sorted({x.shape[1:3] for x in leaves if len(x.shape) == 4}, reverse=True)

    def positives(self, batch: types.Batch) -> Positives:
        """The entries that learn the objects of a batch.

        Darknet lists them apart, as a row of its anchors may learn several objects.
        """
        names = self._names(batch)
        name = "entries" if "entries" in names else self.assignment or names[0]
        found = self._targets((name,), batch)[name]
        image, entry = np.nonzero(found.status == 1)
        return Positives(image, found.matched[image, entry], found.level[image, entry])

    def _find(self, batch) -> str:
        """The first assignment with the same entries whatever an image shows; "" if none."""
        other = batch._replace(
            boxes=np.zeros_like(batch.boxes),
            valid=np.zeros_like(batch.valid),
            ignore=np.zeros_like(batch.ignore),
        )
        for name in self._names(batch):
            with_objects, without = (self._targets((name,), b)[name].boxes for b in (batch, other))
            some = with_objects[0]
            if (with_objects == some).all() and (without == some).all() and some.any():
                return name
        return ""

    def _names(self, batch) -> list[str]:
        """Of all assignments; those that need no network first, so that none is compiled."""
        found = jax.eval_shape(self.detector.targets, *self._variables, batch, jax.random.key(0))
        first = ("main", "rpn", "shape", "init", "location")
        return sorted(found, key=lambda name: first.index(name) if name in first else len(first))

    def _targets(self, names: Sequence[str], batch) -> dict[str, types.Targets]:
        """Some of the targets of a batch, on the host and without values."""
        run = self._compiled.setdefault(names, self._compile(names))
        return jax.device_get(run(*self._variables, batch))

    def _compile(self, names) -> Callable:
        @jax.jit
        def run(params, state, batch):
            found = self.detector.targets(params, state, batch, jax.random.key(0))
            return {name: found[name]._replace(values={}) for name in names}

        return run

    def _none(self) -> errors.UserError:
        return errors.UserError(
            f"{self.config.detector} has no anchors; detlab tools positives shows what learns its"
            " objects."
        )


def _levels(boxes, level) -> list[Level]:
    """The levels of all anchors of a canvas.

    Args:
      boxes: [N, 4] xyxy px.
      level: [N].
    """
    found = []
    for number in range(int(level.max()) + 1):
        here = boxes[level == number].astype(np.float64)
        middles = (here[:, :2] + here[:, 2:]) / 2
        x, y = map(_distinct, middles.T)
        of_cell = (np.abs(middles - middles[0]) < _NEAR).all(1)
        sides = (here[:, 2:] - here[:, :2])[of_cell].round(3)
        step = np.diff(x) if len(x) > 1 else np.diff(y)
        if len(step):
            stride = round(float(step.min()), 3)
        else:  # a single cell shows no stride
            stride = 2 * found[-1].stride if found else float(2 * x[0])
        found.append(Level(stride, x, y, sides))
    return found


def _distinct(values):
    """The values in ascending order, one of those that are the same but for rounding."""
    values = np.unique(values)
    return values[np.diff(values, prepend=-np.inf) > _NEAR]


def with_sizes(levels: Sequence[Level], sizes) -> list[Level]:
    """The same cells with other anchors, the smallest on the finest level.

    Args:
      levels: of a canvas.
      sizes: [k, 2] width, height px, k the number of all anchors of the levels' cells.
    """
    sizes = np.asarray(sizes, float)
    ends = np.cumsum([len(level.sizes) for level in levels])[:-1]
    ordered = sizes[np.argsort(sizes.prod(1), kind="stable")]
    parts = np.split(ordered, ends)
    return [level._replace(sizes=part) for level, part in zip(levels, parts, strict=True)]


def shape_ious(sizes, anchors) -> np.ndarray:
    """IoU [n, k] of objects and anchors with a common middle.

    Args:
      sizes: [n, 2] width, height px of the objects.
      anchors: [k, 2] width, height px.
    """
    sizes, anchors = np.asarray(sizes, float), np.asarray(anchors, float)
    common = np.minimum(sizes[:, None], anchors).prod(2)
    return common / (sizes.prod(1)[:, None] + anchors.prod(1) - common)


def side_ratios(sizes, anchors) -> np.ndarray:
    """Largest ratio [n, k] of the sides of objects and anchors, at least 1.

    Args:
      sizes: [n, 2] width, height px of the objects.
      anchors: [k, 2] width, height px.
    """
    ratio = np.asarray(sizes, float)[:, None] / np.asarray(anchors, float)
    return np.maximum(ratio, 1 / ratio).max(2)


def placed_ious(boxes, levels: Sequence[Level]) -> np.ndarray:
    """Best IoU [n] of objects with the anchors of all cells.

    Of anchors of one size, the best is that whose middle is nearest along both axes.

    Args:
      boxes: [n, 4] xyxy px of the objects.
      levels: of the canvas.
    """
    boxes = np.asarray(boxes, float)
    best = np.zeros(len(boxes))
    middles, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for level in levels:
        places = [
            axis[np.abs(axis - middle[:, None]).argmin(1)]
            for axis, middle in zip((level.x, level.y), middles.T, strict=True)
        ]
        center = np.stack(places, 1)[:, None]  # [n, 1, 2]
        half = level.sizes / 2
        low = np.maximum(center - half, boxes[:, None, :2])
        high = np.minimum(center + half, boxes[:, None, 2:])
        common = np.clip(high - low, 0, None).prod(2)
        union = sizes.prod(1)[:, None] + level.sizes.prod(1) - common
        best = np.maximum(best, (common / union).max(1))
    return best

"""Greedy non-maximum suppression with a fixed number of outputs.

The result is exactly that of the sequential algorithm: in descending order of score, a box is kept
unless its IoU with a kept box exceeds the threshold.  A mask separates boxes of different classes.
The usual trick, shifting each class by a multiple of the image size, rounds coordinates (to
0.008 px at 80 classes) and lets boxes with negative coordinates overlap those of another class.

Two programs compute the same keep mask.  CPUs run a loop with one IoU row per kept box.
Accelerators compare all boxes at once, up to 5792 of them, and more in tiles: every step costs a
launch, and in a loop with a data-dependent end a wait for the host.  Both programs have such loops:
if the batch is sharded across devices, run them per device (`sharding.per_image`,
`sharding.per_device`).
"""

import fractions
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from detlab import types
from detlab.ops import boxes as boxes_lib

_TILE = 256
_PAIRS = 2**25  # of boxes that accelerators compare at once: 32 MiB of verdicts
_ROUNDS = 8  # before an accelerator asks whether the kept boxes of a tile are settled
_LARGEST_POWER = 8  # of an exponent's numerator and denominator that multiplications replace


def iou_above(a, b, threshold):
    """Whether the IoU exceeds the threshold: the usual verdict.

    Args:
      a, b: [..., 4] xyxy px; they broadcast.
      threshold: [].
    Returns:
      [...] bool.
    Example:
      >>> boxes = jnp.array([[0.0, 0, 2, 1], [0, 0, 2, 2]])
      >>> iou_above(jnp.array([0.0, 0, 2, 2]), boxes, 0.5).tolist()
      [False, True]
    """
    return boxes_lib.iou(a, b) > threshold


def iou_reaches(a, b, threshold):
    """Whether the IoU is at least the threshold.

    Args:
      a, b: [..., 4] xyxy px; they broadcast.
      threshold: [].
    Returns:
      [...] bool.
    Example:
      >>> iou_reaches(jnp.array([0.0, 0, 2, 2]), jnp.array([0.0, 0, 2, 1]), 0.5).tolist()
      True
    """
    return boxes_lib.iou(a, b) >= threshold


def distance_iou_above(a, b, threshold, power: float = 0.6, aspect: float = 1.0):
    """Whether IoU - (d^2 / c^2)^power exceeds the threshold: darknet's `greedynms` and `diounms`.

    d is the distance between the centres and c the diagonal of the enclosing box.  Darknet measures
    both relative to the image, so on a canvas that is not square they differ from those in px.

    A power m / n of small integers is compared as (IoU - threshold)^n > (d^2 / c^2)^m: on a CPU a
    real power would take two thirds of the time of suppression.

    Args:
      a, b: [..., 4] xyxy px; they broadcast.
      threshold: [], at least 0.
      power: exponent, static.
      aspect: width / height of the canvas, static.
    Returns:
      [...] bool.
    Example:
      Two overlapping squares, IoU 1/3, d^2 = 1, c^2 = 3^2 + 2^2: 0.333 - 0.077 = 0.256.
      >>> a, b = jnp.array([0.0, 0, 2, 2]), jnp.array([1.0, 0, 3, 2])
      >>> [bool(distance_iou_above(a, b, threshold, power=1.0)) for threshold in (0.25, 0.26)]
      [True, False]
    """
    # Coordinate by coordinate: XLA would not fuse a sum over an axis of two with the rest.
    squares = {"centre": 0.0, "outer": 0.0}
    for low, high, unit in ((0, 2, 1.0), (1, 3, aspect)):
        centre = (a[..., low] + a[..., high] - b[..., low] - b[..., high]) / 2
        outer = jnp.maximum(a[..., high], b[..., high]) - jnp.minimum(a[..., low], b[..., low])
        squares["centre"] += jnp.square(unit * centre)
        squares["outer"] += jnp.square(unit * outer)
    ratio = squares["centre"] / jnp.where(squares["outer"] > 0, squares["outer"], 1.0)
    excess = boxes_lib.iou(a, b) - threshold
    exact = fractions.Fraction(power).limit_denominator(_LARGEST_POWER)
    if float(exact) != power or exact.numerator > _LARGEST_POWER:
        return excess > ratio**power
    # Times 2^6, so that no power of the smallest excess, one bit of the IoU, is rounded to zero.
    left = lax.integer_pow(64.0 * excess, exact.denominator)
    right = 64.0**exact.denominator * lax.integer_pow(ratio, exact.numerator)
    return (excess > 0) & (left > right)


def nms(
    boxes,
    scores,
    valid,
    iou_threshold: float,
    max_outputs: int,
    labels=None,
    above: Callable[..., Any] = iou_above,
):
    """Indices of the boxes that survive, best first.

    Args:
      boxes: [N, 4] xyxy px, of one image.
      scores: [N] float; equal scores keep the order of the boxes.
      valid: [N] bool; invalid boxes are never kept and suppress nothing.
      iou_threshold: a box is dropped where IoU > iou_threshold.
      max_outputs: K, static; may be larger than N.
      labels: [N] int; if given, only boxes of the same class suppress each other.
      above: static; replaces `iou_above`: which of two arrays of boxes that broadcast overlap more
        than the threshold.
    Returns:
      (indices [K] int32, 0 in empty slots; keep [K] bool, the filled slots, which come first).
      Memory: a few vectors of N on a CPU; elsewhere N verdicts for each of N boxes, at most 32 MiB.
    Raises:
      ValueError: `boxes` is not [N, 4], or `max_outputs` is below 1.
    Example:
      The second box is half of the first (IoU 0.5); the third overlaps neither.
      >>> boxes = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6]])
      >>> indices, keep = nms(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), 0.4, 3)
      >>> indices.tolist(), keep.tolist()
      ([0, 2, 0], [True, True, False])
    """
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [N, 4], not {boxes.shape}")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be at least 1, not {max_outputs}")
    if len(boxes) == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes, scores, valid = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores), jnp.asarray(valid)
    labels = jnp.zeros(len(boxes), jnp.int32) if labels is None else jnp.asarray(labels)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    keep = lax.platform_dependent(
        boxes[order],
        labels[order],
        valid[order],
        jnp.asarray(iou_threshold, jnp.float32),
        cpu=functools.partial(_keep_sequential, max_outputs=max_outputs, above=above),
        default=functools.partial(_keep_tiled, above=above),
    )
    # The first K kept positions: ranks decrease along the sorted boxes and are 0 where not kept.
    ranks = jnp.where(keep, jnp.arange(len(boxes), 0, -1), 0)
    ranks, positions = lax.top_k(ranks, min(max_outputs, len(boxes)))
    keep = ranks > 0
    indices = jnp.where(keep, order[positions], 0).astype(jnp.int32)
    empty = (0, max_outputs - len(positions))
    return jnp.pad(indices, empty), jnp.pad(keep, empty)


def leaders(boxes, scores, valid, iou_threshold: float):
    """The box in whose favour greedy suppression would drop each box; a kept one leads itself.

    Boxes with the same leader form a group: that of mmcv's `nms_match`.

    Args:
      boxes: [N, 4] xyxy px, of one image.
      scores: [N] float; of equal scores, the first box is the better one.
      valid: [N] bool; invalid boxes lead themselves alone.
      iou_threshold: above 0; a box belongs to the best kept box with at least this IoU.
    Returns:
      [N] int32 indices.  Memory: 256 N IoUs at a time.
    Example:
      The second box overlaps the first and the third, and belongs to the better one.
      >>> boxes = jnp.array([[0.0, 0, 4, 1], [0, 0, 4, 2], [0, 0, 4, 4]])
      >>> leaders(boxes, jnp.array([0.7, 0.8, 0.9]), jnp.ones(3, bool), 0.5).tolist()
      [0, 2, 2]
    """
    count = len(boxes)
    own = jnp.arange(count, dtype=jnp.int32)
    kept, keep = nms(boxes, scores, valid, iou_threshold, count, above=iou_reaches)
    padding = -count % _TILE
    places = jnp.where(keep, own, count)

    def first(tile):
        """The place of the best box of a tile that each box belongs to; `count` if there is none.

        tile: (boxes [T, 4], places [T]).
        """
        reaches = iou_reaches(tile[0][:, None], boxes, iou_threshold)
        return jnp.where(reaches, tile[1][:, None], count).min(0)

    best_first = jnp.pad(boxes[kept], ((0, padding), (0, 0))).reshape(-1, _TILE, 4)
    tiles = best_first, jnp.pad(places, (0, padding), constant_values=count).reshape(-1, _TILE)
    place = lax.map(first, tiles).min(0)
    # An IoU that is computed twice can differ in its last bit: then a box leads itself.
    alone = ~valid | (place == count) | jnp.zeros(count, bool).at[kept].max(keep)
    return jnp.where(alone, own, kept[jnp.minimum(place, count - 1)])


def suppress(
    boxes,
    scores,
    labels,
    valid,
    iou_threshold: float,
    max_outputs: int,
    above: Callable[..., Any] = iou_above,
    by_class: bool = True,
):
    """The detections of one image after class-aware NMS.

    Args:
      boxes: [N, 4] xyxy px.
      scores: [N].
      labels: [N] int.
      valid: [N] bool.
      iou_threshold: a box is dropped if its IoU with a kept box of its class is above this.
      max_outputs: K, static.
      above: see `nms`.
      by_class: static; if False, boxes of different classes suppress each other too.
    Returns:
      (boxes [K, 4], scores [K], labels [K], valid [K] bool), sorted by score; empty rows come
      last and hold zeros.
    Example:
      Two equal boxes of different classes both stay.
      >>> boxes, scores = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 2]]), jnp.array([0.25, 0.5])
      >>> out = suppress(boxes, scores, jnp.array([7, 3]), jnp.ones(2, bool), 0.5, max_outputs=3)
      >>> [values.tolist() for values in out[1:]]
      [[0.5, 0.25, 0.0], [3, 7, 0], [True, True, False]]
    """
    of_class = labels if by_class else None
    indices, keep = nms(boxes, scores, valid, iou_threshold, max_outputs, of_class, above)
    return (*(take(values, indices, keep) for values in (boxes, scores, labels)), keep)


def suppress_images(
    candidates: types.Detections, iou_threshold: float, max_outputs: int, **settings: Any
) -> types.Detections:
    """`suppress` for every image of `types.Detections`, keeping at most `max_outputs` of each.

    Example:
      One image, two equal boxes of different classes, suppressed across classes.
      >>> boxes, scores = jnp.array([[[0.0, 0, 2, 2]] * 2]), jnp.array([[0.25, 0.5]])
      >>> found = types.Detections(boxes, scores, jnp.array([[7, 3]]), jnp.ones((1, 2), bool))
      >>> kept = suppress_images(found, 0.5, max_outputs=2, by_class=False)
      >>> kept.labels.tolist(), kept.valid.tolist()
      ([[3, 0]], [[True, False]])
    """

    def one_image(boxes, scores, labels, valid):
        return suppress(boxes, scores, labels, valid, iou_threshold, max_outputs, **settings)

    return types.Detections(*jax.vmap(one_image)(*candidates))


def take(values, indices, keep):
    """The rows `indices` [K] of `values` [N, ...], and zeros where `keep` [K] is False.

    Example:
      >>> values, keep = jnp.array([10, 20, 30]), jnp.array([True, True, False])
      >>> take(values, jnp.array([2, 1, 0]), keep).tolist()
      [30, 20, 0]
    """
    padded = jnp.pad(values, [(0, 1)] + [(0, 0)] * (values.ndim - 1))
    return padded[jnp.where(keep, indices, -1)]  # empty slots read the row of zeros


def _keep_sequential(boxes, labels, alive, iou_threshold, max_outputs, above=iou_above):
    """Keep mask [N] of boxes sorted by score, for the first `max_outputs`: a step per kept box."""
    length = len(boxes)
    positions = jnp.arange(length, dtype=jnp.int32)
    columns = boxes.T  # contiguous coordinates: the loop takes a third less time

    def first(alive):
        return jnp.min(jnp.where(alive, positions, length))

    def unfinished(state):
        count, i, _, _ = state
        return (i < length) & (count < max_outputs)

    def step(state):
        count, i, alive, keep = state
        overlaps = above(columns[:, i], columns.T, iou_threshold) & (labels == labels[i])  # [N]
        alive &= (positions > i) & ~overlaps
        return count + 1, first(alive), alive, keep | (positions == i)

    start = jnp.int32(0), first(alive), alive, jnp.zeros(length, bool)
    return lax.while_loop(unfinished, step, start)[3]


def _keep_tiled(boxes, labels, alive, iou_threshold, above=iou_above, pairs=_PAIRS):
    """Keep mask [N] of boxes sorted by score: one tile of `pairs` / N boxes at a time.

    Within a tile, keep = alive and not suppressed by a kept box before it.  Iterating that rule
    settles the boxes from the first to the last, usually in a few rounds (as many as the longest
    chain of suppression), and its only fixed point is the greedy answer.  The kept boxes of a
    tile then suppress all later boxes at once.
    """
    length = len(boxes)
    tiles = -(-length // max(pairs // length, _TILE))
    size = -(-length // tiles)
    padding = tiles * size - length
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    labels, alive = jnp.pad(labels, (0, padding)), jnp.pad(alive, (0, padding))
    positions = jnp.arange(length + padding)

    def tile_step(tile, alive):
        start = tile * size

        def part(values):
            return lax.dynamic_slice_in_dim(values, start, size)

        # [N, tile]: whether a box of the tile suppresses each box.  One array: computed again for
        # another round, an IoU may round differently.
        suppresses = lax.optimization_barrier(
            above(part(boxes), boxes[:, None], iou_threshold)
            & (part(labels) == labels[:, None])
            & (part(positions) < positions[:, None])
        )
        inside, candidates = part(suppresses), part(alive)

        def settle(keep):
            """A few rounds more, and whether the last one changed the boxes kept."""
            for _ in range(_ROUNDS):
                before, keep = keep, candidates & ~jnp.any(keep & inside, axis=1)
            return keep, jnp.any(before != keep)

        keep, _ = lax.while_loop(
            lambda state: state[1], lambda state: settle(state[0]), settle(candidates)
        )
        return alive & ~jnp.any(keep & suppresses, axis=1)

    return lax.fori_loop(0, tiles, tile_step, alive)[:length]

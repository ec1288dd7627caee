"""Which anchors learn which objects in darknet's YOLOv3 and YOLOv4 (AlexeyAB's `yolo_layer.c`).

The head of YOLOv2 has rules of its own, see `learn_region`.

An object is learned in the cell of its centre, by the anchor closest to its width and height among
the anchors of all heads.  With `iou_thresh` below 1 (0.213 in YOLOv4), every other anchor whose
overlap with the object exceeds it learns the object too.  Each head assigns the objects by itself,
to the anchors of its `mask`: an object whose anchor belongs to no head is not learned (anchor 0 of
tiny YOLOv4).

Several objects may be assigned to the same anchor of the same cell, a *row* of the head's output.
Darknet writes them there one after another; `meet` computes the result.  Darknet shuffles the
objects of an image first; here they keep the order of their slots.

Darknet reads labels unchanged and warns about impossible ones.  Here `learnable` drops the objects
that darknet's reader drops, and those whose centre is on no cell, for which darknet writes outside
the map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from detlab.assign import slots as slots_lib
from detlab.ops import boxes as boxes_lib

Array = Any


class Entries(NamedTuple):
    """The assignment of one head and image: one entry per anchor and object slot."""

    row: Array  # [A, G] int32 in 0..Hl*Wl*A-1, in order of map row, column and anchor
    positive: Array  # [A, G] bool: the anchor learns the object there


class Rows(NamedTuple):
    """The objects of each of the N rows of a head; a slot is -1 where there is none."""

    first: Array  # [N] int32 slot of the first object
    last: Array  # [N] int32 slot of the last object that was assigned
    later: Array  # [N, C] bool: classes of the objects after the first


class Learned(NamedTuple):
    """The training targets of the N rows of a head for one image."""

    entries: Entries
    rows: Rows
    iou: Array  # [N] largest IoU of the predicted box with an object
    predicted: Array  # [N] int32 slot of that object where iou > truth_thresh, else -1
    objectness: Array  # [N] 0..1
    counts: Array  # [N] bool: False where the objectness is ignored


def learnable(gt_boxes, gt_valid, canvas: tuple[int, int]):
    """[G] bool: objects of at least 1 px along both sides, with their centre on the canvas.

    Args:
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects.
      canvas: (height, width) px.
    """
    x, y, width, height = jnp.moveaxis(boxes_lib.xyxy_to_cxcywh(gt_boxes), -1, 0)
    on_canvas = (x > 0) & (y > 0) & (x < canvas[1]) & (y < canvas[0])
    return gt_valid & on_canvas & (width >= 1) & (height >= 1)


def shape_overlap(a, b, kind: str = "iou"):
    """Overlap of boxes with the same centre, of the kind `iou_thresh_kind` of the cfg.

    Args:
      a, b: [..., 2] width and height, both > 0; they broadcast.
      kind: "iou", "giou", "diou" (here the same as "iou") or "ciou".  The aspect term of "ciou"
        counts at any IoU, unlike that of `boxes.ciou`.
    Returns:
      [...].
    Raises:
      ValueError: unknown kind.
    """
    if kind not in ("iou", "giou", "diou", "ciou"):
        raise ValueError(f"kind must be 'iou', 'giou', 'diou' or 'ciou', not {kind!r}")
    inner = jnp.minimum(a, b).prod(-1)
    union = a.prod(-1) + b.prod(-1) - inner
    iou = inner / jnp.maximum(union, jnp.finfo(jnp.float32).tiny)
    if kind == "giou":
        outer = jnp.maximum(a, b).prod(-1)
        return iou - (outer - union) / outer
    if kind == "ciou":
        angle = jnp.arctan(b[..., 0] / b[..., 1]) - jnp.arctan(a[..., 0] / a[..., 1])
        v = (4 / jnp.pi**2) * angle**2
        return iou - v * v / (1 - iou + v + 1e-6)
    return iou


def assign(
    sizes,
    mask: Sequence[int],
    shape: tuple[int, int],
    canvas: tuple[int, int],
    gt_boxes,
    gt_valid,
    iou_thresh: float = 1.0,
    iou_kind: str = "iou",
) -> Entries:
    """The entries of one head for one image.

    Args:
      sizes: [K, 2] width and height of all anchors of the network, px, static.
      mask: indices of this head's A anchors in `sizes`, static.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the `learnable` objects.
      iou_thresh: besides the best anchor, those whose overlap with an object exceeds this learn
        it; at 1 or above, only the best does.
      iou_kind: the kind of overlap compared with `iou_thresh`, see `shape_overlap`.
    Returns:
      Entries.
    """
    unit = np.array([canvas[1], canvas[0]], np.float32)  # as in darknet; matters for ciou only
    anchors = jnp.asarray(sizes, jnp.float32) / unit  # [K, 2]
    center, extent = jnp.split(boxes_lib.xyxy_to_cxcywh(gt_boxes) / np.tile(unit, 2), 2, axis=-1)
    extent = jnp.where(gt_valid[:, None], extent, 1.0)  # [G, 2]
    best = jnp.argmax(shape_overlap(anchors[:, None], extent), axis=0)  # [G], the first on ties
    numbers = np.asarray(mask)[:, None]  # [A, 1]
    positive = numbers == best  # [A, G]
    if iou_thresh < 1:
        own = anchors[np.asarray(mask)]
        positive |= shape_overlap(own[:, None], extent, iou_kind) > iou_thresh
    return Entries(_row_numbers(center, shape, len(mask)), positive & gt_valid)


def _row_numbers(center, shape: tuple[int, int], num_anchors: int):
    """The rows [A, G] of the cells of relative centres [G, 2], one for each anchor."""
    cells = np.array([shape[1], shape[0]])
    column, row = jnp.moveaxis(jnp.floor(center * cells).astype(jnp.int32), -1, 0)  # [G] each
    column, row = jnp.clip(column, 0, shape[1] - 1), jnp.clip(row, 0, shape[0] - 1)
    number = (row * shape[1] + column) * num_anchors + np.arange(num_anchors)[:, None]
    return number.astype(jnp.int32)


def best_overlap(boxes, gt_boxes, gt_valid):
    """The object that each predicted box overlaps best; `slots` says what memory it takes.

    Args:
      boxes: [N, 4] xyxy px; a box that is not finite overlaps nothing.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool.
    Returns:
      (IoU [N], 0 without overlap; slot [N] int32, the first on ties).
    """

    def step(carry, gts):
        best, matched = carry
        slot, box, valid = gts  # [B], [B, 4], [B]
        iou = boxes_lib.iou(boxes, box[:, None])  # [B, N]
        iou = jnp.where(valid[:, None] & (iou > 0), iou, 0.0)  # also where it is NaN
        largest, first = slots_lib.first_largest(lax.optimization_barrier(iou), slot)
        better = largest > best
        return jnp.where(better, largest, best), jnp.where(better, first, matched)

    start = jnp.zeros(len(boxes)), jnp.zeros(len(boxes), jnp.int32)
    gts = (jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid)
    return slots_lib.scan(step, start, gts, len(boxes))


def meet(entries: Entries, labels, num_rows: int, num_classes: int, predicted) -> Rows:
    """The objects of each row, where several may be assigned to the same row.

    Args:
      entries: result of `assign`.
      labels: [G] int32.
      num_rows: N of the head.
      num_classes: C.
      predicted: [N] int32 slot of the object that a row learns because its predicted box overlaps
        it by more than `truth_thresh`; it comes before all others; -1 for none.
    Returns:
      Rows.
    """
    row, positive = entries
    predicted = jnp.asarray(predicted)
    slots = jnp.broadcast_to(jnp.arange(len(labels)), row.shape)
    none = len(labels)  # a slot after all others
    first = jnp.full(num_rows, none).at[row].min(jnp.where(positive, slots, none))
    last = jnp.full(num_rows, -1).at[row].max(jnp.where(positive, slots, -1))
    is_later = positive & ((slots > first[row]) | (predicted[row] >= 0))
    columns = jnp.broadcast_to(labels, row.shape)
    later = jnp.zeros((num_rows, num_classes), bool).at[row, columns].max(is_later)
    first = jnp.where(predicted >= 0, predicted, jnp.where(first < none, first, -1))
    return Rows(first.astype(jnp.int32), last.astype(jnp.int32), later)


def objectness(
    best_iou,
    confident,
    positive,
    ignore_thresh: float,
    truth_thresh: float = 1.0,
    smooth: bool = False,
):
    """The objectness target of each row, and whether it counts.

    A row without an assigned object is background.  If its box overlaps an object by more than
    `ignore_thresh`, the row is ignored; by more than `truth_thresh`, its target is 1.  With
    `smooth` the target is the IoU in the first case and its square in the second, and assigned
    objects change nothing: darknet writes their target only where the value there is exactly 0.

    Args:
      best_iou: [N] from `best_overlap`.
      confident: [N] bool: rows with a class score high enough for `ignore_thresh` to apply.
      positive: [N] bool: rows with an assigned object.
      ignore_thresh, truth_thresh: see above.
      smooth: `objectness_smooth` of the cfg.
    Returns:
      (target [N] in 0..1, counts [N] bool).
    """
    near, predicted = confident & (best_iou > ignore_thresh), best_iou > truth_thresh
    if smooth:
        target = jnp.where(predicted, best_iou**2, jnp.where(near, best_iou, 0.0))
        return target, jnp.ones_like(near)
    learns = positive | predicted
    return learns.astype(jnp.float32), learns | ~near


def learn(
    head: Any,
    boxes,
    scores,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    gt_boxes,
    gt_labels,
    gt_valid,
    min_class_score: float = 0.25,
) -> Learned:
    """All training targets of one head for one image.

    Args:
      head: has the fields of `detlab.darknet.cfg.Yolo`.
      boxes: [N, 4] predicted boxes of the rows, cxcywh relative to the canvas.
      scores: [N, C] class scores, after the sigmoid.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_labels: [G] int32.
      gt_valid: [G] bool, the real objects.
      min_class_score: `ignore_thresh` applies to rows with any class score above this.  A value
        below 0 gives the rule of the original darknet, which ignores the class scores.
    Returns:
      Learned.
    """
    gt_valid = learnable(gt_boxes, gt_valid, canvas)
    entries = assign(
        head.anchors,
        head.mask,
        shape,
        canvas,
        gt_boxes,
        gt_valid,
        head.iou_thresh,
        head.iou_thresh_kind,
    )
    unit = np.array([canvas[1], canvas[0]] * 2, np.float32)
    iou, slot = best_overlap(boxes_lib.cxcywh_to_xyxy(boxes) * unit, gt_boxes, gt_valid)
    predicted = jnp.where(iou > head.truth_thresh, slot, -1)
    rows = meet(entries, gt_labels, len(boxes), scores.shape[-1], predicted)
    target, counts = objectness(
        iou,
        scores.max(-1) > min_class_score,
        rows.last >= 0,
        head.ignore_thresh,
        head.truth_thresh,
        head.objectness_smooth,
    )
    return Learned(entries, rows, iou, predicted, target, counts)


def learn_region(
    head: Any,
    sizes,
    boxes,
    num_classes: int,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    gt_boxes,
    gt_valid,
) -> Learned:
    """All training targets of a [region] for one image, as in `region_layer.c`.

    One anchor learns an object in the cell of its centre: the one of the best shape, or with
    `bias_match=0` the one whose predicted box there has the best shape.  Where several objects meet
    in a row, only the last one is learned.  Rows without an object whose box overlaps an object by
    more than `thresh` do not count.

    Args:
      head: has the fields of `detlab.darknet.cfg.Region`.
      sizes: [A, 2] width and height of the anchors, px, static.
      boxes: [N, 4] predicted boxes of the rows, cxcywh relative to the canvas.
      num_classes: C.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_valid: [G] bool, the real objects.
    Returns:
      Learned.
    """
    gt_valid = learnable(gt_boxes, gt_valid, canvas)
    unit = np.array([canvas[1], canvas[0]] * 2, np.float32)
    center, extent = jnp.split(boxes_lib.xyxy_to_cxcywh(gt_boxes) / unit, 2, axis=-1)
    extent = jnp.where(gt_valid[:, None], extent, 1.0)  # [G, 2]
    row = _row_numbers(center, shape, len(sizes))  # [A, G]
    own = jnp.asarray(sizes / unit[:2])[:, None] if head.bias_match else boxes[row][..., 2:]
    overlap = shape_overlap(own, extent)
    best = jnp.argmax(jnp.where(jnp.isfinite(overlap), overlap, 0.0), axis=0)  # [G]
    positive = (np.arange(len(sizes))[:, None] == best) & gt_valid
    slots = jnp.broadcast_to(jnp.arange(len(gt_boxes), dtype=jnp.int32), row.shape)
    last = jnp.full(len(boxes), -1, jnp.int32).at[row].max(jnp.where(positive, slots, -1))
    positive &= last[row] == slots

    corners = boxes_lib.cxcywh_to_xyxy(boxes) * unit
    iou, _ = best_overlap(corners, gt_boxes, gt_valid)
    is_object = last >= 0
    target = jnp.ones_like(iou)
    if head.rescore:
        target = jnp.nan_to_num(boxes_lib.iou(corners, gt_boxes[jnp.maximum(last, 0)]))
    return Learned(
        Entries(row, positive),
        Rows(last, last, jnp.zeros((len(boxes), num_classes), bool)),
        iou,
        jnp.full_like(last, -1),
        jnp.where(is_object, target, 0.0),
        is_object | ~(iou > head.thresh),
    )

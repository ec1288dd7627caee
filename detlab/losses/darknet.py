"""Losses of darknet's YOLOv3 and YOLOv4 (AlexeyAB's `yolo_layer.c` and `box.c`), unreduced.

Darknet has no loss to differentiate: it writes *deltas*, the changes that it wants of the raw
outputs, and hands them to the convolution before.  Each loss here has a value to follow, and minus
the delta as its derivative by the raw outputs.

For objectness, classes and, with `iou_loss=mse`, boxes the delta is target - prediction, which is
the descent of a cross entropy or of half a square.  With the other kinds of `iou_loss` it is the
slope of no function; `overlap` has the value 1 - IoU (GIoU, DIoU, CIoU) and is given the slope, see
`overlap_deltas`.

Boxes are relative to the canvas here, as in darknet: centre x and y, width and height in 0..1.  The
size of the deltas depends on that.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from detlab.losses import cross_entropy
from detlab.losses import iou as iou_losses
from detlab.ops import boxes as boxes_lib

Array = Any

KINDS = ("mse", "iou", "giou", "diou", "ciou")


class Terms(NamedTuple):
    """The loss of one head and one image."""

    box: Array  # [A * G] of each anchor and object slot, and [N] more with truth_thresh < 1
    objectness: Array  # [N]
    classes: Array  # [N, C]


def with_slope(value, variables, slope):
    """`value`, with `slope` as its derivative by `variables` whatever it was computed from.

    Args:
      value: [...].
      variables: [..., D].
      slope: [..., D].
    Returns:
      [...].
    """
    change = variables - lax.stop_gradient(variables)  # 0, with a derivative of 1
    return lax.stop_gradient(value) + (lax.stop_gradient(slope) * change).sum(-1)


def place(raw, targets, scale_x_y: float = 1.0):
    """Loss of the place in a cell, whose delta is target - (s sigmoid(raw) - (s - 1) / 2).

    It is s times the cross entropy with the sigmoid that gives the target.

    Args:
      raw: [..., 2] x, y.
      targets: [..., 2] x, y of the centre in its cell, 0..1.
      scale_x_y: s of the head.
    Returns:
      [..., 2].
    """
    sigmoids = (targets + 0.5 * (scale_x_y - 1)) / scale_x_y
    return scale_x_y * cross_entropy.sigmoid_cross_entropy(raw, sigmoids)


def size(raw, targets):
    """Half the squared error of the logarithms of width and height.

    Args:
      raw: [..., 2] w, h.
      targets: [..., 2] logarithms of the width and height of the object over those of the anchor.
    Returns:
      [..., 2].
    """
    return 0.5 * jnp.square(raw - targets)


def overlap(raw, boxes, targets, growth, kind: str, weight, max_delta: float):
    """1 - the overlap, times `weight`, with darknet's deltas as the descent of the raw outputs.

    Args:
      raw: [..., 4] x, y, w, h; nothing else has a derivative.
      boxes: [..., 4] cxcywh that raw decodes to, relative to the canvas.
      targets: [..., 4] cxcywh of the objects, relative to the canvas.
      growth: [..., 2] exp of the raw w and h.
      kind: "iou", "giou", "diou" or "ciou".
      weight: [...] `iou_normalizer`, times what else the object counts.
      max_delta: bound of each delta, after the weight.
    Returns:
      [...]; a predicted box that is not finite costs the weight and has no slope.
    Raises:
      ValueError: another kind.
    """
    deltas = weight[..., None] * overlap_deltas(boxes, targets, growth, kind)
    deltas = jnp.clip(jnp.where(jnp.isfinite(deltas), deltas, 0.0), -max_delta, max_delta)
    measure = {
        "iou": lambda a, b: iou_losses.iou_loss(a, b, "linear"),
        "giou": iou_losses.giou_loss,
        "diou": iou_losses.diou_loss,
        "ciou": lambda a, b: 1 - boxes_lib.ciou(a, b, ratio_above=-1.0),
    }[kind]
    # Far from the smallest area that the overlaps know: in thousandths of the canvas.
    loss = measure(*(1000 * boxes_lib.cxcywh_to_xyxy(x) for x in (boxes, targets)))
    return with_slope(weight * jnp.where(jnp.isfinite(loss), loss, 1.0), raw, -deltas)


def overlap_deltas(boxes, targets, growth, kind: str):
    """Darknet's direction towards more overlap, [..., 4] of the raw x, y, w, h.

    It is near the derivative by centre and size, but not the same, and followed to the letter:
      - x and y lack the derivatives of the decoding (of the sigmoid, `scale_x_y`, the cell's
        size), w and h the size of the anchor: only the exponential is there.
      - The part of IoU and GIoU by width and height counts twice: it is the difference of the
        derivatives by the two sides, not half of it.
      - The intersection is not cut off at 0.  DIoU and CIoU leave the part of the IoU out where
        boxes do not meet; with "iou" and "giou" it pulls, or pushes where they miss each other
        along both axes.
      - The part of DIoU and CIoU that comes from the enclosing box has the other sign in x and y.
      - The aspect term of CIoU counts at any IoU, is not divided by width^2 + height^2, and its
        weight is a constant.
      - Equal sides pass nothing on.

    Args:
      boxes, targets: [..., 4] cxcywh, as in `overlap`.
      growth: [..., 2], as in `overlap`.
      kind: as in `overlap`.
    Returns:
      [..., 4] before weight and bound; may be NaN or infinite where boxes are not finite.
    Raises:
      ValueError: another kind.
    """
    if kind not in KINDS[1:]:
        raise ValueError(f"kind must be one of {', '.join(KINDS[1:])}, not {kind!r}")
    boxes, targets, growth = lax.stop_gradient((boxes, targets, growth))
    extent = jnp.where(boxes[..., 2:] == 0, 1.0, boxes[..., 2:])  # as darknet, against 0 / 0
    boxes = jnp.concatenate([boxes[..., :2], extent], axis=-1)
    twice = jnp.array([1.0, 1.0, 2.0, 2.0])

    def slope(function):
        return jax.grad(lambda x: function(x, targets).sum())(boxes)

    inner, union, outer = _areas(boxes, targets)
    meets = (_spans(boxes, targets)[0] > 0).all(-1)[..., None]
    iou_part = jnp.where((union > 0)[..., None], twice * slope(_iou), 0.0)
    if kind == "iou":
        direction = iou_part
    elif kind == "giou":
        outer_part = twice * slope(_union_of_outer)
        direction = jnp.where(meets, iou_part, 0.0) + outer_part
    else:
        apart, diagonal = slope(_center_distance), slope(_outer_diagonal)
        distance, length = _center_distance(boxes, targets), _outer_diagonal(boxes, targets)
        sign = jnp.array([-1.0, -1.0, 1.0, 1.0])
        factor = (distance / jnp.square(length))[..., None]
        distance_part = -apart / length[..., None] + sign * factor * diagonal
        direction = jnp.where(meets, iou_part, 0.0) + distance_part
    if kind == "ciou":
        angle = _angle(targets) - _angle(boxes)
        v = (4 / jnp.pi**2) * angle**2
        alpha = v / (1 - inner / union + v + 1e-6)
        pull = (8 / jnp.pi**2) * alpha * angle
        zero = jnp.zeros_like(pull)
        by_size = [zero, zero, pull * boxes[..., 3], -pull * boxes[..., 2]]
        direction += jnp.stack(by_size, axis=-1)
    return direction * jnp.concatenate([jnp.ones_like(growth), growth], axis=-1)


def class_multipliers(counters: Sequence[int], max_delta: float):
    """How much each class counts with `counters_per_class`: rare ones more, up to `max_delta`.

    Args:
      counters: number of objects of each class in the training data; () for no weights.
      max_delta: of the head.
    Returns:
      [C] float32 NumPy, the largest number over that of the class; None for no counters.
    """
    if not counters:
        return None
    counters = np.maximum(np.asarray(counters, np.float32), 1)
    return np.minimum(counters.max() / counters, np.float32(max_delta))


def class_targets(
    scores,
    first,
    later,
    multipliers=None,
    cls_normalizer: float = 1.0,
    label_smooth_eps: float = 0.0,
    focal: bool = False,
    own_score=None,
):
    """What the classes of each row learn, and how much each of them counts.

    The object that comes to a row first writes all classes, those that follow only their own, so
    that a row with several objects learns all their classes.  `cls_normalizer` multiplies what the
    first object writes for its class, and that only where there are `multipliers`: so it is in
    darknet, and has no effect otherwise.  A focal weight, one number for all classes, and the
    label smoothing exclude each other for the first object, and only the smoothing is there for
    those that follow.

    Args:
      scores: [..., C] sigmoids; constants.
      first: [...] int32 label of the first object, -1 for none.
      later: [..., C] bool, the classes of those that follow.
      multipliers: [C] or None, see `class_multipliers`.
      cls_normalizer, label_smooth_eps, focal: of the head.
      own_score: [...] or None: where it is above 0 the first object's class learns that instead.
    Returns:
      (targets [..., C], weights [..., C]); of no meaning where there is no object.
    """
    scores = lax.stop_gradient(scores)
    is_first = first[..., None] == jnp.arange(scores.shape[-1])  # [..., C]

    def smooth(target):
        return target * (1 - label_smooth_eps) + 0.5 * label_smooth_eps

    if focal:
        targets = is_first.astype(jnp.float32)
        p = jnp.where(is_first, scores, 0.0).sum(-1, keepdims=True) + 1e-15
        # Half of (1 - p) (1 - p - 2 p ln p): alpha 0.5 and gamma 2 (arXiv:1708.02002, appendix B).
        weights = jnp.broadcast_to(0.5 * (1 - p) * (1 - p - 2 * p * jnp.log(p)), scores.shape)
    else:
        targets, weights = smooth(is_first.astype(jnp.float32)), jnp.ones_like(scores)
        if multipliers is not None:
            weights = jnp.where(is_first, multipliers * cls_normalizer, 1.0)
    once_more = jnp.ones(scores.shape[-1]) if multipliers is None else multipliers
    if own_score is not None:
        is_given = is_first & (own_score > 0)[..., None]
        targets = jnp.where(is_given, own_score[..., None], targets)
        weights = jnp.where(is_given, once_more, weights)
    return jnp.where(later, smooth(1.0), targets), jnp.where(later, once_more, weights)


def head_terms(
    head: Any,
    raw,
    boxes,
    anchors,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    learned: Any,
    gt_boxes,
    gt_labels,
) -> Terms:
    """All terms of one head and one image, weighted as darknet weighs them.

    With `iou_thresh` below 1 darknet divides the box deltas of a row, which are those of all its
    objects together, by the number of its class deltas above 0: by the number of classes of its
    objects, but with label smoothing also of classes whose score is already below the smoothed 0.
    (Darknet does not divide where the delta of the objectness is exactly 0.)

    Args:
      head: has the fields of `darknet_cfg.Yolo`.
      raw: [N, 5 + C] x, y, w, h, objectness, classes of each row, float32.
      boxes: [N, 4] cxcywh that the rows predict, relative to the canvas.
      anchors: [N, 4] xyxy px, around the middles of their cells.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      learned: `assign.darknet.Learned`, constants.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_labels: [G] int32.
    Returns:
      Terms.
    """
    entries, rows = learned.entries, learned.rows
    num_classes = raw.shape[-1] - 5
    multipliers = class_multipliers(head.counters_per_class, head.max_delta)
    factors = jnp.ones(num_classes) if multipliers is None else jnp.asarray(multipliers)

    weight = jnp.where(learned.counts, head.obj_normalizer, 0.0)
    if not head.objectness_smooth:
        weight *= jnp.where(rows.last >= 0, factors[gt_labels[rows.last]], 1.0)
    bce = cross_entropy.sigmoid_cross_entropy
    objectness = weight * bce(raw[:, 4], learned.objectness)

    scores = lax.stop_gradient(jax.nn.sigmoid(raw[:, 5:]))
    own_score = jnp.where(learned.predicted >= 0, learned.iou**2, 0.0)
    targets, weights = class_targets(
        scores,
        jnp.where(rows.first >= 0, gt_labels[rows.first], -1),
        rows.later,
        multipliers,
        head.cls_normalizer,
        head.label_smooth_eps,
        head.focal_loss,
        own_score if head.objectness_smooth else None,
    )
    weights = jnp.where(rows.first[:, None] >= 0, weights, 0.0)
    classes = weights * bce(raw[:, 5:], targets)

    divisor = jnp.ones(len(raw))
    if head.iou_thresh < 1:
        divisor = jnp.maximum((weights * (targets - scores) > 0).sum(-1), 1)

    def box(row, slot, learns):
        """[...] for rows [...] that learn the objects in these slots."""
        truths = jnp.where(learns[..., None], gt_boxes[slot], anchors[row])
        given = (raw[row, :4], boxes[row], anchors[row], shape, canvas, truths)
        loss = box_loss(head, *given, factors[gt_labels[slot]])
        return jnp.where(learns, loss / divisor[row], 0.0).ravel()

    slots = jnp.broadcast_to(jnp.arange(len(gt_boxes)), entries.row.shape)
    terms = [box(entries.row, slots, entries.positive)]
    if head.truth_thresh < 1:
        terms.append(box(jnp.arange(len(raw)), learned.predicted, learned.predicted >= 0))
    return Terms(jnp.concatenate(terms), objectness, classes)


def box_loss(
    head: Any,
    raw,
    boxes,
    anchors,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    truths,
    factor,
):
    """The loss of boxes, of the kind `iou_loss`, times its normaliser and `factor`.

    With "mse" small objects count more, up to twice: 2 - the part of the canvas.

    Args:
      head: has the fields of `darknet_cfg.Yolo`.
      raw: [..., 4] x, y, w, h.
      boxes: [..., 4] cxcywh that raw decodes to, relative to the canvas.
      anchors, truths: [..., 4] xyxy px.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      factor: [...] of the object's class.
    Returns:
      [...].
    """
    unit = np.array([canvas[1], canvas[0]] * 2, np.float32)
    anchors, truths = (boxes_lib.xyxy_to_cxcywh(x) / unit for x in (anchors, truths))
    weight = head.iou_normalizer * factor
    if head.iou_loss == "mse":
        cells = np.array([shape[1], shape[0]], np.float32)
        xy = (truths[..., :2] - anchors[..., :2]) * cells + 0.5
        wh = jnp.log(truths[..., 2:] / anchors[..., 2:])
        loss = place(raw[..., :2], xy, head.scale_x_y) + size(raw[..., 2:], wh)
        return weight * (2 - truths[..., 2:].prod(-1)) * loss.sum(-1)
    growth = jnp.exp(raw[..., 2:])
    return overlap(raw, boxes, truths, growth, head.iou_loss, weight, head.max_delta)


# Of two boxes cxcywh.  Comparisons, not minima: at equal sides nothing passes on to the first box.


def _sides(boxes):
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


def _spans(a, b):
    """Width and height of the intersection, below 0 where they do not meet, and of what encloses.

    [..., 2] each.
    """
    (a_low, a_high), (b_low, b_high) = _sides(a), _sides(b)
    inner = jnp.where(a_high < b_high, a_high, b_high) - jnp.where(a_low > b_low, a_low, b_low)
    outer = jnp.where(a_high > b_high, a_high, b_high) - jnp.where(a_low < b_low, a_low, b_low)
    return inner, outer


def _areas(a, b):
    """Intersection, also of negative spans, the union that it leaves, and what encloses both."""
    inner, outer = (span.prod(-1) for span in _spans(a, b))
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner
    return inner, union, outer


def _iou(a, b):
    inner, union, _ = _areas(a, b)
    return inner / jnp.where(union > 0, union, 1.0)


def _union_of_outer(a, b):
    _, union, outer = _areas(a, b)
    return union / outer


def _center_distance(a, b):
    """Squared."""
    return jnp.square(a[..., :2] - b[..., :2]).sum(-1)


def _outer_diagonal(a, b):
    """Squared."""
    return jnp.square(_spans(a, b)[1]).sum(-1)


def _angle(boxes):
    return jnp.arctan(boxes[..., 2] / boxes[..., 3])

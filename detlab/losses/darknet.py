"""Losses of darknet's YOLOv3 and YOLOv4 (AlexeyAB's `yolo_layer.c` and `box.c`), unreduced.

Darknet differentiates no loss: it writes *deltas*, the desired changes of the raw outputs, and
passes them to the convolution before.  Each loss here has a value to monitor, and its derivative by
the raw outputs is minus the delta.

For objectness, classes and, with `iou_loss=mse`, boxes, the delta is target - prediction: minus the
gradient of a cross entropy or of half a squared error.  With the other kinds of `iou_loss` the
delta is not the gradient of any function: `overlap` has the value 1 - IoU (GIoU, DIoU, CIoU), and
its gradient is set to minus the delta, see `overlap_deltas`.

With `new_coords` the raw outputs are values of a logistic.  The deltas are those of these values,
and the derivative of the logistic follows in the convolution before.

Boxes are relative to the canvas here, as in darknet: centre x and y, width and height in 0..1.  The
size of the deltas depends on it.
"""

import math
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
    """The loss of one head for one image."""

    # [A * G], per anchor and object slot, plus [N] with truth_thresh < 1 and in a [region].
    box: Array
    objectness: Array  # [N]
    classes: Array  # [N, C]


def with_slope(value, variables, slope):
    """`value`, with `slope` as its derivative by `variables`, however it was computed.

    Args:
      value: [...].
      variables: [..., D].
      slope: [..., D].
    Returns:
      [...].
    """
    change = variables - lax.stop_gradient(variables)  # 0, with a derivative of 1
    return lax.stop_gradient(value) + (lax.stop_gradient(slope) * change).sum(-1)


def place(raw, targets, scale_x_y: float = 1.0, new_coords: bool = False):
    """Loss of the position in a cell, with the delta target - (s sigmoid(raw) - (s - 1) / 2).

    It is s times the cross entropy with the sigmoid value that decodes to the target.  With
    `new_coords` raw stands for its sigmoid, and the loss is s times half the squared distance to
    that value.

    Args:
      raw: [..., 2] x, y.
      targets: [..., 2] x, y of the centre in its cell, 0..1.
      scale_x_y: s of the head.
      new_coords: of the head.
    Returns:
      [..., 2].
    """
    sigmoids = (targets + 0.5 * (scale_x_y - 1)) / scale_x_y
    if new_coords:
        return 0.5 * scale_x_y * jnp.square(raw - sigmoids)
    return scale_x_y * cross_entropy.sigmoid_cross_entropy(raw, sigmoids)


def size(raw, targets):
    """Half the squared error of the values of width and height.

    Args:
      raw: [..., 2] w, h.
      targets: [..., 2] the values that decode to the object's width and height.
    Returns:
      [..., 2].
    """
    return half_square(raw, targets)


def half_square(values, targets):
    """Half the squared error: its descent is target - value.

    Args:
      values, targets: of equal shapes [...].
    Returns:
      [...].
    """
    return 0.5 * jnp.square(values - targets)


def overlap(raw, boxes, targets, growth, kind: str, weight, max_delta: float):
    """`weight` * (1 - overlap); its gradient by the raw outputs is minus darknet's deltas.

    Args:
      raw: [..., 4] x, y, w, h; only this has a gradient.
      boxes: [..., 4] cxcywh decoded from raw, relative to the canvas.
      targets: [..., 4] cxcywh of the objects, relative to the canvas.
      growth: [..., 2] exp of the raw w and h; 1 with `new_coords`.
      kind: "iou", "giou", "diou" or "ciou".
      weight: [...] `iou_normalizer` times the other weights of the object.
      max_delta: bound of each delta, after the weight.
    Returns:
      [...]; a predicted box that is not finite costs the weight and has no gradient.
    Raises:
      ValueError: unknown kind.
    """
    deltas = weight[..., None] * overlap_deltas(boxes, targets, growth, kind)
    deltas = jnp.clip(jnp.where(jnp.isfinite(deltas), deltas, 0.0), -max_delta, max_delta)
    measure = {
        "iou": lambda a, b: iou_losses.iou_loss(a, b, "linear"),
        "giou": iou_losses.giou_loss,
        "diou": iou_losses.diou_loss,
        "ciou": lambda a, b: 1 - boxes_lib.ciou(a, b, ratio_above=-1.0),
    }[kind]
    # In thousandths of the canvas, to stay far above the smallest area that the measures allow.
    loss = measure(*(1000 * boxes_lib.cxcywh_to_xyxy(x) for x in (boxes, targets)))
    return with_slope(weight * jnp.where(jnp.isfinite(loss), loss, 1.0), raw, -deltas)


def overlap_deltas(boxes, targets, growth, kind: str):
    """Darknet's direction of increasing overlap, [..., 4], for the raw x, y, w, h.

    It is close to the derivative by centre and size but not equal to it.  Followed exactly:
      - x and y lack the derivatives of the decoding (sigmoid, `scale_x_y`, size of the cell).  w
        and h include the exponential but lack the size of the anchor.
      - The IoU and GIoU parts of width and height count twice: they are the difference of the
        derivatives by the two sides, not half of it.
      - The intersection is not clipped at 0.  Where boxes do not overlap, "giou", "diou" and "ciou"
        drop the IoU part, but the union in "giou" uses the unclipped intersection.  With "iou" the
        boxes attract each other there, or repel each other if apart along both axes.
      - The part of DIoU and CIoU from the enclosing box has the opposite sign in x and y.
      - The aspect term of CIoU counts at any IoU, is not divided by width^2 + height^2, and its
        weight is a constant.
      - Sides that are equal get no gradient.

    Args:
      boxes, targets: [..., 4] cxcywh, as in `overlap`.
      growth: [..., 2], as in `overlap`.
      kind: as in `overlap`.
    Returns:
      [..., 4] before weight and bound; may be NaN or infinite where boxes are not finite.
    Raises:
      ValueError: unknown kind.
    """
    if kind not in KINDS[1:]:
        raise ValueError(f"kind must be one of {', '.join(KINDS[1:])}, not {kind!r}")
    boxes, targets, growth = lax.stop_gradient((boxes, targets, growth))
    extent = jnp.where(boxes[..., 2:] == 0, 1.0, boxes[..., 2:])  # as in darknet, against 0 / 0
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
    """Weight of each class with `counters_per_class`: rare classes get more, up to `max_delta`.

    Args:
      counters: number of objects of each class in the training data; () for no weights.
      max_delta: of the head.
    Returns:
      [C] float32 NumPy, the largest number divided by that of the class; None without counters.
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
    """Class targets of each row, and the weight of each class.

    The first object of a row writes all classes and later ones only their own class, so a row with
    several objects learns all their classes.  As in darknet, `cls_normalizer` only multiplies what
    the first object writes for its class, and only if there are `multipliers`.  For the first
    object, the focal weight (one number for all classes) and label smoothing exclude each other;
    later objects get only the smoothing.

    Args:
      scores: [..., C] after the sigmoid; without gradients.
      first: [...] int32 label of the first object, -1 for none.
      later: [..., C] bool, the classes of the later objects.
      multipliers: [C] or None, see `class_multipliers`.
      cls_normalizer, label_smooth_eps, focal: settings of the head.
      own_score: [...] or None; where above 0, it is the target of the first object's class.
    Returns:
      (targets [..., C], weights [..., C]); meaningless where there is no object.
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
    spread=None,
) -> Terms:
    """All loss terms of one head for one image, weighted as in darknet.

    With `iou_thresh` below 1, darknet divides the box deltas of a row, summed over its objects, by
    the number of its class deltas above 0.  That is the number of classes of its objects; with
    label smoothing, classes whose score is below the smoothed 0 count too.  (Darknet does not
    divide where the delta of the objectness is exactly 0.)

    Args:
      head: has the fields of `detlab.darknet.cfg.Yolo`.
      raw: [N, 5 + C] x, y, w, h, objectness, classes of each row, float32.
      boxes: [N, 4] predicted boxes of the rows, cxcywh relative to the canvas.
      anchors: [N, 4] xyxy px, centred on their cells.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      learned: `assign.darknet.Learned`, without gradients.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_labels: [G] int32.
      spread: [N, 4] uncertainties of x, y, w, h in [Gaussian_yolo], before their sigmoid.  Its
        deltas are divided by the number of classes whatever `iou_thresh` is.
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
    if head.new_coords:
        scores, distance = lax.stop_gradient(raw[:, 5:]), half_square
    else:
        scores = lax.stop_gradient(jax.nn.sigmoid(raw[:, 5:]))
        distance = cross_entropy.sigmoid_cross_entropy
    objectness = weight * distance(raw[:, 4], learned.objectness)

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
    classes = weights * distance(raw[:, 5:], targets)

    divisor = jnp.ones(len(raw))
    if head.iou_thresh < 1 or spread is not None:
        divisor = jnp.maximum((weights * (targets - scores) > 0).sum(-1), 1)

    def box(row, slot, learns):
        """[...] for rows [...] that learn the objects in these slots."""
        truths = jnp.where(learns[..., None], gt_boxes[slot], anchors[row])
        given = (raw[row, :4], boxes[row], anchors[row], shape, canvas, truths)
        if spread is None:
            loss = box_loss(head, *given, factors[gt_labels[slot]])
        else:
            loss = gaussian_box_loss(head, spread[row], *given)
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
    """The box loss of the kind `iou_loss`, times `iou_normalizer` and `factor`.

    With "mse" it is also multiplied by 2 - the object's share of the canvas: small objects count
    up to twice.

    Args:
      head: has the fields of `detlab.darknet.cfg.Yolo`.
      raw: [..., 4] x, y, w, h.
      boxes: [..., 4] cxcywh decoded from raw, relative to the canvas.
      anchors, truths: [..., 4] xyxy px.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      factor: [...] weight of the object's class.
    Returns:
      [...].
    """
    unit = np.array([canvas[1], canvas[0]] * 2, np.float32)
    anchors, truths = (boxes_lib.xyxy_to_cxcywh(x) / unit for x in (anchors, truths))
    weight = head.iou_normalizer * factor
    if head.iou_loss == "mse":
        cells = np.array([shape[1], shape[0]], np.float32)
        xy = (truths[..., :2] - anchors[..., :2]) * cells + 0.5
        wh = truths[..., 2:] / anchors[..., 2:]
        wh = jnp.sqrt(wh / 4) if head.new_coords else jnp.log(wh)
        loss = place(raw[..., :2], xy, head.scale_x_y, head.new_coords) + size(raw[..., 2:], wh)
        return weight * (2 - truths[..., 2:].prod(-1)) * loss.sum(-1)
    growth = jnp.ones_like(raw[..., 2:]) if head.new_coords else jnp.exp(raw[..., 2:])
    return overlap(raw, boxes, truths, growth, head.iou_loss, weight, head.max_delta)


def gaussian_box_loss(
    head: Any,
    spread,
    raw,
    boxes,
    anchors,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    truths,
):
    """The box loss of [Gaussian_yolo], with the deltas of `gaussian_yolo_layer.c`.

    The value is minus the logarithm of the normal density of the distance d to the target, half of
    it times 2 - the object's share of the canvas; with another `iou_loss` than "mse", plus 1 - IoU.
    With u the uncertainty, darknet divides d / u once more by u, and adds 0.3 to the u that divides
    the density; the derivatives of sigmoids are left out.

    Args:
      head: has the fields of `detlab.darknet.cfg.GaussianYolo`.
      spread: [..., 4] uncertainties of x, y, w, h before their sigmoid.
      raw: [..., 4] x, y, w, h.
      boxes: [..., 4] cxcywh decoded from raw, relative to the canvas.
      anchors, truths: [..., 4] xyxy px.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
    Returns:
      [...].
    """
    unit = np.array([canvas[1], canvas[0]] * 2, np.float32)
    own, wanted = (boxes_lib.xyxy_to_cxcywh(x) / unit for x in (anchors, truths))
    cells = np.array([shape[1], shape[0]], np.float32)
    targets = jnp.concatenate(
        [
            (wanted[..., :2] - own[..., :2]) * cells + 0.5,
            jnp.log(wanted[..., 2:] / own[..., 2:]),
        ],
        axis=-1,
    )
    place = head.scale_x_y * jax.nn.sigmoid(raw[..., :2]) - 0.5 * (head.scale_x_y - 1)
    distance = targets - jnp.concatenate([place, raw[..., 2:]], axis=-1)
    uncertainty = jax.nn.sigmoid(spread)
    relative = distance / uncertainty
    wide = uncertainty + 0.3
    density = jnp.exp(-0.5 * jnp.square(relative)) / (math.sqrt(2 * math.pi) * wide)
    scale = 0.5 * (2 - wanted[..., 2:].prod(-1, keepdims=True))
    factor = scale * density / (density + 1e-9)
    by_spread = factor * (jnp.square(relative) / uncertainty - 1 / wide) * head.uc_normalizer
    by_raw = factor * relative / uncertainty * head.iou_normalizer
    # An uncertainty of 0 divides 0 by 0 for an exact prediction; darknet's delta is then 0.
    value = (-scale * jnp.log(jnp.nan_to_num(density) + 1e-9)).sum(-1)

    def bounded(deltas):
        deltas = jnp.where(jnp.isfinite(deltas), deltas, 0.0)
        return jnp.clip(deltas, -head.max_delta, head.max_delta)

    if head.iou_loss != "mse":
        growth, weight = jnp.exp(raw[..., 2:]), jnp.full(raw.shape[:-1], head.iou_normalizer)
        iou = overlap(raw, boxes, wanted, growth, head.iou_loss, weight, head.max_delta)
        return iou + with_slope(value, spread, -bounded(by_spread))
    deltas = jnp.concatenate([bounded(by_raw), bounded(by_spread)], axis=-1)
    return with_slope(value, jnp.concatenate([raw, spread], axis=-1), -deltas)


# Functions of cxcywh boxes.  Comparisons, not minima: equal sides give the first box no gradient.


def _sides(boxes):
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


def _spans(a, b):
    """Width and height [..., 2] of the intersection, < 0 without overlap, and of the outer box."""
    (a_low, a_high), (b_low, b_high) = _sides(a), _sides(b)
    inner = jnp.where(a_high < b_high, a_high, b_high) - jnp.where(a_low > b_low, a_low, b_low)
    outer = jnp.where(a_high > b_high, a_high, b_high) - jnp.where(a_low < b_low, a_low, b_low)
    return inner, outer


def _areas(a, b):
    """Areas of the intersection (product of its spans, also if < 0), union and enclosing box."""
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
    """Squared distance of the centres."""
    return jnp.square(a[..., :2] - b[..., :2]).sum(-1)


def _outer_diagonal(a, b):
    """Squared diagonal of the enclosing box."""
    return jnp.square(_spans(a, b)[1]).sum(-1)


def _angle(boxes):
    return jnp.arctan(boxes[..., 2] / boxes[..., 3])

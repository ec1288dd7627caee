"""Darknet's deltas of one head and one image in plain loops: the slow reference of the tests.

Follows AlexeyAB's `yolo_layer.c` and `box.c`, in float64.  Boxes are (x, y, w, h) around a centre,
relative to the image.  An output is `raw[row, column, anchor]` = x, y, w, h, objectness, classes.
"""

from typing import NamedTuple

import numpy as np


class Head(NamedTuple):
    """The keys of a `[yolo]` section that training reads, with darknet's defaults."""

    anchors: tuple  # (width, height) px, of all heads
    mask: tuple
    scale_x_y: float = 1.0
    new_coords: bool = False
    uc_normalizer: float = 1.0
    iou_loss: str = "mse"
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    iou_thresh: float = 1.0
    iou_thresh_kind: str = "iou"
    max_delta: float = np.inf
    label_smooth_eps: float = 0.0
    objectness_smooth: bool = False
    focal_loss: bool = False
    counters_per_class: tuple = ()

    @property
    def kind(self):
        return "new_coords" if self.new_coords else "yolo"


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def sides(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def spans(a, b):
    """Width and height of the intersection, which may be negative, and of the enclosing box."""
    (al, at, ar, ab), (bl, bt, br, bb) = sides(a), sides(b)
    inner = min(ar, br) - max(al, bl), min(ab, bb) - max(at, bt)
    return inner, (max(ar, br) - min(al, bl), max(ab, bb) - min(at, bt))


def measure(a, b, kind="iou"):
    """IoU and its relatives, as they are compared with thresholds."""
    (iw, ih), (ow, oh) = spans(a, b)
    inner = max(iw, 0) * max(ih, 0)
    union = a[2] * a[3] + b[2] * b[3] - inner
    iou = inner / union
    if kind == "giou":
        return iou - (ow * oh - union) / (ow * oh)
    if kind == "diou":
        return iou - (((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (ow**2 + oh**2)) ** 0.6
    if kind == "ciou":
        v = 4 / np.pi**2 * (np.arctan(a[2] / a[3]) - np.arctan(b[2] / b[3])) ** 2
        distance = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (ow**2 + oh**2)
        return iou - distance - v * v / (1 - iou + v + 1e-6)
    return iou


def overlap_direction(box, truth, kind):
    """(x, y, w, h) that darknet uses as the ascent of the overlap, before the exponential."""
    w, h = (side if side else 1.0 for side in box[2:])
    box = (*box[:2], w, h)
    (left, top, right, bottom), (tl, tt, tr, tb) = sides(box), sides(truth)
    (iw, ih), (ow, oh) = spans(box, truth)
    inner = iw * ih
    union = w * h + truth[2] * truth[3] - inner

    # Derivatives by the sides left, top, right, bottom: of area, intersection, enclosing box.
    d_area = np.array([-h, -w, h, w])
    d_inner = np.array([-ih * (left > tl), -iw * (top > tt), ih * (right < tr), iw * (bottom < tb)])
    d_outer = np.array([-oh * (left < tl), -ow * (top < tt), oh * (right > tr), ow * (bottom > tb)])
    d_union = d_area - d_inner
    by_side = (union * d_inner - inner * d_union) / union**2 if union > 0 else np.zeros(4)
    apart = iw <= 0 or ih <= 0
    if kind == "giou":
        outer = ow * oh
        second = (outer * d_union - union * d_outer) / outer**2
        by_side = second if apart else by_side + second
    left_, top_, right_, bottom_ = by_side
    result = np.array([left_ + right_, top_ + bottom_, right_ - left_, bottom_ - top_])
    if kind in ("iou", "giou"):
        return result

    diagonal = ow**2 + oh**2
    distance = (truth[0] - box[0]) ** 2 + (truth[1] - box[1]) ** 2
    d_ow = np.array(
        [int(right > tr) - int(left < tl), 0, 0.5 * (int(right > tr) + int(left < tl)), 0]
    )
    d_oh = np.array(
        [0, int(bottom > tb) - int(top < tt), 0, 0.5 * (int(bottom > tb) + int(top < tt))]
    )
    d_diagonal = 2 * ow * d_ow + 2 * oh * d_oh
    second = np.array([2 * (truth[0] - box[0]), 2 * (truth[1] - box[1]), 0, 0]) / diagonal
    second += np.array([-1, -1, 1, 1]) * distance * d_diagonal / diagonal**2
    if kind == "ciou":
        angle = np.arctan(truth[2] / truth[3]) - np.arctan(w / h)
        v = 4 / np.pi**2 * angle**2
        alpha = v / (1 - inner / union + v + 1e-6)
        second += alpha * 8 / np.pi**2 * angle * np.array([0, 0, h, -w])
    return second if apart else result + second


def multipliers(head, num_classes):
    if not head.counters_per_class:
        return np.ones(num_classes)
    counters = np.maximum(head.counters_per_class, 1)
    return np.minimum(counters.max() / counters, head.max_delta)


def decode(head, raw, row, column, a, shape, canvas):
    """The predicted box of one row."""
    x, y, w, h = raw[row, column, a, :4]
    aw, ah = head.anchors[head.mask[a]]
    shift = (head.scale_x_y - 1) / 2
    x, y = (x, y) if head.new_coords else (sigmoid(x), sigmoid(y))
    w, h = (4 * w * w, 4 * h * h) if head.new_coords else (np.exp(w), np.exp(h))
    return (
        (column + head.scale_x_y * x - shift) / shape[1],
        (row + head.scale_x_y * y - shift) / shape[0],
        w * aw / canvas[1],
        h * ah / canvas[0],
    )


def write_class(deltas, scores, label, head):
    """Writes one object's class into the deltas [C] of a row with these scores [C], in place."""
    num_classes = len(scores)
    factors, eps = multipliers(head, num_classes), head.label_smooth_eps
    if deltas[label]:  # another object is already there
        deltas[label] = factors[label] * (1 - eps / 2 - scores[label])
    elif head.focal_loss:
        p = scores[label]
        weight = 0.5 * -(1 - p) * (2 * p * np.log(p) + p - 1)
        deltas[:] = weight * (np.eye(num_classes)[label] - scores)
    else:
        deltas[:] = np.eye(num_classes)[label] * (1 - eps) + eps / 2 - scores
        if head.counters_per_class:
            deltas[label] *= factors[label] * head.cls_normalizer


def head_deltas(head, raw, truths, labels, canvas, spread=None):
    """The deltas of one head.

    Args:
      head: Head.
      raw: [Hl, Wl, A, 5 + C].
      truths: list of (x, y, w, h), relative.
      labels: list of int.
      canvas: (height, width) px.
      spread: [Hl, Wl, A, 4] uncertainties of x, y, w, h in [Gaussian_yolo]
        (gaussian_yolo_layer.c), before their sigmoid.
    Returns:
      array like raw; with `spread` also one like that.
    """
    raw = np.asarray(raw, np.float64)
    shape, num_classes = raw.shape[:2], raw.shape[-1] - 5
    scores = raw[..., 4:] if head.new_coords else sigmoid(raw[..., 4:])
    deltas = np.zeros_like(raw)
    factors = multipliers(head, num_classes)

    spread_deltas = None if spread is None else np.zeros(spread.shape)

    def write_gaussian(at, truth, wanted):
        there = raw[at][:4].copy()
        there[:2] = head.scale_x_y * sigmoid(there[:2]) - (head.scale_x_y - 1) / 2
        change, of_spread = np.zeros(4), np.zeros(4)
        for k in range(4):
            u = sigmoid(spread[at][k])
            relative = (wanted[k] - there[k]) / u
            density = np.exp(-0.5 * relative**2) / (np.sqrt(2 * np.pi) * (u + 0.3))
            factor = 0.5 / (density + 1e-9) * density * (2 - truth[2] * truth[3])
            change[k] = factor * relative / u
            of_spread[k] = factor * (relative**2 / u - 1 / (u + 0.3)) * head.uc_normalizer
        if head.iou_loss != "mse":
            box = decode(head, raw, *at, shape, canvas)
            change = overlap_direction(box, truth, head.iou_loss)
            change[2:] *= np.exp(raw[at][2:4])
        change = change * head.iou_normalizer
        deltas[at][:4] += np.clip(change, -head.max_delta, head.max_delta)
        spread_deltas[at] += np.clip(of_spread, -head.max_delta, head.max_delta)

    def write_box(at, truth, label):
        row, column, a = at
        weight = head.iou_normalizer * factors[label]
        aw, ah = head.anchors[head.mask[a]]
        wanted = [
            truth[0] * shape[1] - column,
            truth[1] * shape[0] - row,
            np.log(truth[2] * canvas[1] / aw),
            np.log(truth[3] * canvas[0] / ah),
        ]
        if spread is not None:
            write_gaussian(at, truth, wanted)
            return
        if head.iou_loss == "mse":
            there = raw[at][:4].copy()
            if head.new_coords:
                wanted[2] = np.sqrt(truth[2] * canvas[1] / (4 * aw))
                wanted[3] = np.sqrt(truth[3] * canvas[0] / (4 * ah))
            else:
                there[:2] = sigmoid(there[:2])
            there[:2] = head.scale_x_y * there[:2] - (head.scale_x_y - 1) / 2
            deltas[at][:4] += (2 - truth[2] * truth[3]) * (wanted - there) * weight
            return
        change = overlap_direction(decode(head, raw, *at, shape, canvas), truth, head.iou_loss)
        if not head.new_coords:
            change[2:] *= np.exp(raw[at][2:4])
        change = np.where(np.isfinite(change), change, 0) * weight
        deltas[at][:4] += np.clip(change, -head.max_delta, head.max_delta)

    def write_objectness(at, label):
        if not head.objectness_smooth:
            deltas[at][4] = factors[label] * head.obj_normalizer * (1 - scores[at][0])

    for at in np.ndindex(*raw.shape[:3]):
        ious = [measure(decode(head, raw, *at, shape, canvas), truth) for truth in truths]
        best = max(ious, default=0.0)
        confident = scores[at][1:].max() > 0.25
        deltas[at][4] = -head.obj_normalizer * scores[at][0]
        if confident and best > head.ignore_thresh:
            wanted = best if head.objectness_smooth else scores[at][0]
            deltas[at][4] = head.obj_normalizer * (wanted - scores[at][0])
        if best > head.truth_thresh:
            slot = int(np.argmax(ious))
            wanted = best**2 if head.objectness_smooth else 1
            deltas[at][4] = head.obj_normalizer * (wanted - scores[at][0])
            label = labels[slot]
            write_class(deltas[at][5:], scores[at][1:], label, head)
            if head.objectness_smooth:
                deltas[at][5 + label] = factors[label] * (best**2 - scores[at][1 + label])
            write_box(at, truths[slot], label)

    for truth, label in zip(truths, labels):
        row, column = int(truth[1] * shape[0]), int(truth[0] * shape[1])
        centred = (0, 0, truth[2], truth[3])
        anchors = [(0, 0, w / canvas[1], h / canvas[0]) for w, h in head.anchors]
        best = int(np.argmax([measure(anchor, centred) for anchor in anchors]))
        others = [
            n
            for n in head.mask
            if n != best
            and head.iou_thresh < 1
            and measure(anchors[n], centred, head.iou_thresh_kind) > head.iou_thresh
        ]
        for number in [best, *others]:
            if number in head.mask:
                at = row, column, head.mask.index(number)
                write_box(at, truth, label)
                write_objectness(at, label)
                write_class(deltas[at][5:], scores[at][1:], label, head)

    if head.iou_thresh < 1 or spread is not None:
        for at in np.ndindex(*raw.shape[:3]):
            classes = (deltas[at][5:] > 0).sum()
            if deltas[at][4] != 0 and classes:
                deltas[at][:4] /= classes
                if spread is not None:
                    spread_deltas[at] /= classes
    return deltas if spread is None else (deltas, spread_deltas)


class Region(NamedTuple):
    """The keys of a `[region]` section that training reads, with darknet's defaults."""

    anchors: tuple  # (width, height) in cells
    softmax: bool = True
    thresh: float = 0.5
    bias_match: bool = False
    rescore: bool = False
    coord_scale: float = 1.0
    object_scale: float = 1.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0
    kind: str = "region"

    @property
    def mask(self):
        return tuple(range(len(self.anchors)))


def region_deltas(head, raw, truths, labels, seen):
    """The deltas of a `[region]`, from region_layer.c; arguments as in `head_deltas`.

    `seen` counts the images of the training, with those of this part of a batch.
    """
    raw = np.asarray(raw, np.float64)
    rows, columns, count = raw.shape[:3]
    out, deltas = raw.copy(), np.zeros_like(raw)
    out[..., :2], out[..., 4] = sigmoid(raw[..., :2]), sigmoid(raw[..., 4])
    if head.softmax:
        out[..., 5:] = np.exp(raw[..., 5:] - raw[..., 5:].max(-1, keepdims=True))
        out[..., 5:] /= out[..., 5:].sum(-1, keepdims=True)

    def box_of(row, column, a):
        x, y, w, h = out[row, column, a, :4]
        size = np.exp([w, h]) * head.anchors[a] / [columns, rows]
        return (column + x) / columns, (row + y) / rows, *size

    def slope(value):
        return value * (1 - value)

    for at in np.ndindex(rows, columns, count):
        best = max((measure(box_of(*at), truth) for truth in truths), default=0.0)
        there = out[at][4]
        deltas[at][4] = head.noobject_scale * (0 - there) * slope(there)
        if best > head.thresh:
            deltas[at][4] = 0
        if seen < 12800:  # a box on the anchor, in the middle of the cell
            deltas[at][:2] = 0.01 * (0.5 - out[at][:2]) * slope(out[at][:2])
            deltas[at][2:4] = 0.01 * (np.log(1) - raw[at][2:4])
    for truth, label in zip(truths, labels):
        column, row = int(truth[0] * columns), int(truth[1] * rows)
        overlaps = []
        for a in range(count):
            size = box_of(row, column, a)[2:]
            if head.bias_match:
                size = head.anchors[a][0] / columns, head.anchors[a][1] / rows
            overlaps.append(measure((0, 0, *size), (0, 0, *truth[2:])))
        best = int(np.argmax(overlaps))
        at = row, column, best
        wanted = [truth[0] * columns - column, truth[1] * rows - row]
        deltas[at][:2] = head.coord_scale * (wanted - out[at][:2]) * slope(out[at][:2])
        size = np.log(np.array(truth[2:]) * [columns, rows] / head.anchors[best])
        deltas[at][2:4] = head.coord_scale * (size - raw[at][2:4])
        target = measure(box_of(*at), truth) if head.rescore else 1
        deltas[at][4] = head.object_scale * (target - out[at][4]) * slope(out[at][4])
        deltas[at][5:] = head.class_scale * (np.eye(raw.shape[-1] - 5)[label] - out[at][5:])
    return deltas

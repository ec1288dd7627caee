"""Any network of darknet: YOLOv3 (arXiv:1804.02767), YOLOv4 (arXiv:2004.10934), their tiny forms.

The field `cfg` is the text of a darknet cfg, or the name of one of the four standard networks in
`darknet_networks.py`.  The network is built from its sections, so custom and depthwise ones are
detectors like any other; what [yolo] says of anchors, thresholds and losses counts.

Reference: AlexeyAB/darknet (docs/parity.md has the commit).  As there: width and height are
multiples of anchors, a class counts by objectness times its own probability, and `greedynms`
suppresses by IoU less a measure of distance.  Targets and losses: `assign/darknet.py` and
`losses/darknet.py`, whose docstrings say where darknet is not followed to the letter.

Darknet sums deltas over a batch and divides the learning rate by its size.  So the loss here is the
mean over the images of the global batch; there is no other normaliser, and with accumulation
(darknet's `subdivisions`) parts of a batch count the same.  Live norms keep 0.99 of their running
statistics at each step, as darknet does.  Canvases may have any size that the network's strides
divide; anchors stay px.

Expected: the accuracy of the weights that are converted; docs/darknet.md tells what was checked.
"""

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from detlab import darknet_cfg
from detlab import darknet_networks
from detlab import fields
from detlab import layers
from detlab import types
from detlab.assign import darknet as grid
from detlab.losses import cross_entropy
from detlab.losses import darknet as darknet_losses
from detlab.ops import boxes as boxes_lib
from detlab.ops import conv as conv_lib
from detlab.ops import nms as nms_lib
from detlab.ops import pool

ACTIVATIONS = {
    "linear": lambda x: x,
    "leaky": layers.leaky_relu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "relu": nn.relu,
    "logistic": nn.sigmoid,
    "swish": nn.swish,
}
NMS_KINDS = ("", "default", "greedynms", "diounms")


class Outputs(NamedTuple):
    features: tuple  # none: a cfg has no neck of its own
    predictions: tuple  # of each [yolo], in order: [B, Hl, Wl, A * (5 + C)]


class Convolution(nn.Module):
    """[convolutional]: a convolution, norm or bias, activation."""

    layer: darknet_cfg.Convolutional
    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        layer, border = self.layer, (self.layer.border,) * 2
        shape = (layer.size, layer.size, x.shape[-1] // layer.groups, layer.filters)
        kernel = self.param("kernel", layers.he_normal_out, shape).astype(self.dtype)
        if layer.groups == 1:
            x = conv_lib.conv(x, kernel, layer.stride, (border, border))
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                (layer.stride,) * 2,
                (border, border),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=layer.groups,
            )
        if layer.batch_normalize:
            norm = layers.Norm(self.norm, momentum=0.99, dtype=self.dtype, name="norm")
            x = norm(x, train)
        else:
            bias = self.param("bias", nn.initializers.zeros, (layer.filters,))
            x = x + bias.astype(self.dtype)
        return ACTIVATIONS[layer.activation](x)


class Network(nn.Module):
    """The layers of a cfg; parameter paths begin with `layer<number>`, as darknet counts them."""

    network: darknet_cfg.Network
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, H, W, 3] -> the input of every [yolo], [B, Hl, Wl, A * (5 + C)] float32."""
        outputs, predictions = [], []
        for number, layer in enumerate(self.network.layers):
            match layer:
                case darknet_cfg.Convolutional():
                    conv = Convolution(layer, self.norm, self.dtype, name=f"layer{number}")
                    x = conv(x, train)
                case darknet_cfg.Route():
                    parts = []
                    for source in layer.layers:
                        width = outputs[source].shape[-1] // layer.groups
                        start = layer.group_id * width
                        parts.append(outputs[source][..., start : start + width])
                    x = jnp.concatenate(parts, axis=-1)
                case darknet_cfg.Shortcut():
                    x = sum((outputs[source] for source in layer.layers), x)
                    x = ACTIVATIONS[layer.activation](x)
                case darknet_cfg.Upsample():
                    x = x.repeat(layer.stride, axis=1).repeat(layer.stride, axis=2)
                case darknet_cfg.MaxPool():
                    x = max_pool(x, layer)
                case darknet_cfg.Dropout():
                    if train and layer.probability > 0:
                        keep = 1 - layer.probability
                        kept = jax.random.bernoulli(self.make_rng("sample"), keep, x.shape)
                        x = jnp.where(kept, x / keep, 0)
                case darknet_cfg.Yolo():
                    predictions.append(x.astype(jnp.float32))
            outputs.append(x)
        return tuple(predictions)


def max_pool(x: jax.Array, layer: darknet_cfg.MaxPool) -> jax.Array:
    """[maxpool]: of the padding the smaller half lies left and above."""
    before, after = layer.padding // 2, layer.padding - layer.padding // 2
    if layer.stride == 1 and before == after and layer.size == 2 * before + 1:
        return pool.max_pool(x, layer.size)
    border = (before, after)
    return nn.max_pool(x, (layer.size,) * 2, (layer.stride,) * 2, (border, border))


class Darknet(nn.Module):
    """The detector; its fields are what a config's `model` may set."""

    cfg: str = "yolov4"  # text of a cfg, or yolov3, yolov3-tiny, yolov4, yolov4-tiny
    num_classes: int = 80
    width_multiple: float = 1.0  # of the channels
    norm: str = "batch"  # stored: running statistics in training too
    # Prediction.
    score_threshold: float = 0.005  # of objectness, and of objectness times probability
    nms_iou: float = 0.45
    nms_kind: str = ""  # default or greedynms; that of the last [yolo] where it is not given
    multi_label: bool = True  # a box may be of several classes; else of its best one
    class_agnostic: bool = False  # boxes of other classes suppress too
    num_candidates: int = 2000  # pairs (box, class) of the best scores
    max_detections: int = 200
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)
    pixel_std: Sequence[float] = (255.0, 255.0, 255.0)
    dtype: str = "float32"  # of computation; parameters, losses and boxes are float32

    def check(self) -> None:
        """Raises ValueError for a value that no network of darknet can have."""
        norms = ("batch", "stored")
        rules = (
            ("num_classes", self.num_classes >= 1, "at least 1"),
            ("width_multiple", self.width_multiple > 0, "above 0"),
            ("norm", self.norm in norms, f"one of {', '.join(norms)}"),
            ("nms_kind", self.nms_kind in NMS_KINDS, f"one of {', '.join(NMS_KINDS[1:])}"),
            ("num_candidates", self.num_candidates >= 1, "at least 1"),
            *fields.of_suppression(self),
            *fields.of_input(self),
        )
        fields.check(self, rules)
        darknet_cfg.shapes(self.network())

    def network(self) -> darknet_cfg.Network:
        """The cfg with this detector's classes and width.

        Raises:
          CfgError: see `darknet_networks.resolve`, `scaled` and `heads`.
        """
        network = darknet_networks.resolve(self.cfg)
        network = darknet_networks.scaled(network, self.width_multiple)
        return darknet_networks.with_classes(network, self.num_classes)

    def heads(self) -> list[darknet_cfg.Yolo]:
        """The [yolo] sections, in order."""
        network = self.network()
        return [network.layers[number] for number in darknet_networks.heads(network)]

    def setup(self):
        self.layers = Network(self.network(), self.norm, self.dtype)

    def forward(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every head."""
        x = layers.normalise(images, self.pixel_mean, self.pixel_std, self.dtype)
        return Outputs((), self.layers(x, train))

    def decode(self, raw: jax.Array, head: darknet_cfg.Yolo, canvas: tuple[int, int]) -> jax.Array:
        """Boxes of a head, cxcywh relative to the canvas: [B, Hl, Wl, A, 5 + C] -> [..., 4]."""
        rows, columns = raw.shape[1:3]
        anchors = np.array([head.anchors[i] for i in head.mask], np.float32)  # [A, 2] px
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)[:, :, None]
        place = head.scale_x_y * nn.sigmoid(raw[..., :2]) - 0.5 * (head.scale_x_y - 1)
        centre = (cells + place) / np.array([columns, rows], np.float32)
        size = jnp.exp(raw[..., 2:4]) * (anchors / np.array(canvas[::-1], np.float32))
        return jnp.concatenate([centre, size], axis=-1)

    # --------------------------------------------------------------------------------------------
    # Prediction

    def candidates(self, images: jax.Array, image_size: jax.Array) -> types.Detections:
        """The (box, class) pairs of the best scores, of all heads together.

        Darknet has no bound on their number; `num_candidates` is one, and takes the worst first.
        """
        canvas = images.shape[1:3]
        boxes, scores = [], []
        for head, raw in zip(self.heads(), self.forward(images, train=False).predictions):
            raw = raw.reshape(*raw.shape[:3], len(head.mask), -1)
            decoded = self.decode(raw, head, canvas)
            objectness = nn.sigmoid(raw[..., 4:5])
            score = objectness * nn.sigmoid(raw[..., 5:])
            score = jnp.where(objectness > self.score_threshold, score, 0.0)
            boxes.append(decoded.reshape(len(raw), -1, 4))
            scores.append(score.reshape(len(raw), -1, self.num_classes))
        unit = np.tile(np.array(canvas[::-1], np.float32), 2)
        boxes = boxes_lib.cxcywh_to_xyxy(jnp.concatenate(boxes, axis=1)) * unit  # [B, N, 4] px
        scores = jnp.concatenate(scores, axis=1)  # [B, N, C]

        def one_image(boxes, scores, size):
            # What has its centre on padding is none of the image's.
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            scores = jnp.where((centre < size[::-1]).all(-1)[:, None], scores, 0.0)
            if not self.multi_label:
                best = scores.argmax(-1)[:, None] == jnp.arange(self.num_classes)
                scores = jnp.where(best, scores, 0.0)
            scores, pair = lax.top_k(scores.reshape(-1), min(self.num_candidates, scores.size))
            boxes, label = boxes[pair // self.num_classes], pair % self.num_classes
            usable = (boxes[:, 2:] > boxes[:, :2]).all(-1) & jnp.isfinite(boxes).all(-1)
            valid = (scores > self.score_threshold) & usable
            return boxes, scores, label.astype(jnp.int32), valid

        return types.Detections(*jax.vmap(one_image)(boxes, scores, image_size))

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression; the best `max_detections` of an image stay."""
        kind = self.nms_kind or self.heads()[-1].nms_kind
        measure = "iou" if kind == "default" else "iou_less_distance"
        return nms_lib.suppress_images(
            candidates,
            self.nms_iou,
            self.max_detections,
            measure=measure,
            by_class=not self.class_agnostic,
        )

    # --------------------------------------------------------------------------------------------
    # Training

    def targets(self, batch: types.Batch) -> dict[str, types.Targets]:
        """Entries (anchor of a head, object) of every head: `head0`, ...

        `boxes` are the anchors around the centres of their cells, `values["row"]` their rows in the
        head's output, `values["boxes"]` the objects.
        """
        canvas, found = batch.images.shape[1:3], {}
        shapes = self.head_shapes(canvas)
        for i, (head, shape) in enumerate(zip(self.heads(), shapes)):
            anchors = np.array([head.anchors[k] for k in head.mask], np.float32)

            def one_image(boxes, valid, head=head, shape=shape, anchors=anchors):
                valid = grid.learnable(boxes, valid, canvas)
                entries = grid.assign(
                    head.anchors,
                    head.mask,
                    shape,
                    canvas,
                    boxes,
                    valid,
                    head.iou_thresh,
                    head.iou_thresh_kind,
                )
                cell = entries.row // len(head.mask)
                size = np.array([canvas[1] / shape[1], canvas[0] / shape[0]], np.float32)
                centre = (jnp.stack([cell % shape[1], cell // shape[1]], -1) + 0.5) * size
                half = anchors[:, None] / 2
                around = jnp.concatenate([centre - half, centre + half], axis=-1)
                slots = jnp.broadcast_to(jnp.arange(len(boxes)), entries.row.shape)
                flat = (x.reshape(-1, *x.shape[2:]) for x in (around, entries.row, slots))
                return *flat, entries.positive.reshape(-1)

            around, row, slots, positive = jax.vmap(one_image)(batch.boxes, batch.valid)
            gt = jnp.take_along_axis(batch.boxes, slots[..., None], axis=1)
            found[f"head{i}"] = lax.stop_gradient(
                types.Targets(
                    boxes=around,
                    level=jnp.full(slots.shape, i, jnp.int32),
                    status=positive.astype(jnp.int32) * 2 - 1,
                    matched=slots,
                    values={"row": row, "boxes": gt},
                )
            )
        return found

    def head_shapes(self, canvas: tuple[int, int]) -> list[tuple[int, int]]:
        """(Hl, Wl) of every head on a canvas (height, width)."""
        network = self.network()
        shapes = darknet_cfg.shapes(network, *canvas)
        return [(shapes[i].height, shapes[i].width) for i in darknet_networks.heads(network)]

    def loss(self, batch: types.Batch):
        """Deltas of darknet as descents: boxes, objectness and classes of every head."""
        canvas = batch.images.shape[1:3]
        outputs = self.forward(batch.images, train=True)
        targets = self.targets(batch)
        terms = dict.fromkeys(("box", "objectness", "cls"), 0.0)
        positives = 0
        for i, (head, raw) in enumerate(zip(self.heads(), outputs.predictions)):
            found, shape = targets[f"head{i}"], raw.shape[1:3]
            rows = raw.reshape(len(raw), -1, 5 + self.num_classes)  # [B, N, 5 + C]
            decoded = self.decode(raw.reshape(*raw.shape[:3], len(head.mask), -1), head, canvas)
            decoded = decoded.reshape(len(raw), -1, 4)

            def one_image(
                rows, decoded, row, positive, boxes, labels, valid, head=head, shape=shape
            ):
                entries = grid.Entries(
                    row.reshape(len(head.mask), -1), positive.reshape(len(head.mask), -1)
                )
                return head_loss(head, rows, decoded, entries, boxes, labels, valid, canvas, shape)

            of_head = jax.vmap(one_image)(
                rows,
                decoded,
                found.values["row"],
                found.status == 1,
                batch.boxes,
                batch.labels,
                batch.valid,
            )
            for name, values in zip(terms, of_head):
                terms[name] += values.mean()
            positives += (found.status == 1).sum() / len(raw)
        terms = {f"loss/{name}": term for name, term in terms.items()}
        return sum(terms.values()), {**terms, "positives": positives}

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return ("batch_stats/.*",) if self.norm == "stored" else ()


def head_loss(
    head: darknet_cfg.Yolo,
    rows: jax.Array,
    decoded: jax.Array,
    entries: grid.Entries,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    gt_valid: jax.Array,
    canvas: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(box, objectness, class) losses of one head and one image, sums over its rows.

    Args:
      head: its [yolo] section.
      rows: [N, 5 + C] raw outputs, by rows, columns and anchors of a cell.
      decoded: [N, 4] their boxes, cxcywh relative to the canvas.
      entries: of `assign.darknet`, [A, G].
      gt_boxes, gt_labels, gt_valid: [G, 4] xyxy px, [G], [G].
      canvas, shape: (height, width) px and cells.
    """
    unit = np.tile(np.array(canvas[::-1], np.float32), 2)
    valid = grid.learnable(gt_boxes, gt_valid, canvas)
    num_rows, num_classes = rows.shape[0], rows.shape[1] - 5
    overlap, slot = lax.stop_gradient(
        grid.best_overlap(boxes_lib.cxcywh_to_xyxy(decoded) * unit, gt_boxes, valid)
    )
    # With truth_thresh below 1 a box that hits an object well enough learns it where it is.
    predicted = jnp.where(overlap > head.truth_thresh, slot, -1) if head.truth_thresh < 1 else None
    meeting = grid.meet(entries, gt_labels, num_rows, num_classes, predicted)
    multipliers = darknet_losses.class_multipliers(head.counters_per_class, head.max_delta)
    factors = jnp.ones(num_classes) if multipliers is None else jnp.asarray(multipliers)

    scores = nn.sigmoid(rows[:, 5:])
    wanted, weight = grid.objectness(
        overlap,
        scores.max(-1) > 0.25,
        meeting.last >= 0,
        factors[meeting.last],
        head.ignore_thresh,
        head.truth_thresh,
        head.objectness_smooth,
    )
    cross = cross_entropy.sigmoid_cross_entropy
    objectness = head.obj_normalizer * weight * cross(rows[:, 4], wanted)

    squared = None
    if head.objectness_smooth and head.truth_thresh < 1:
        squared = jnp.where(overlap > head.truth_thresh, overlap**2, 0.0)
    wanted, weight = darknet_losses.class_targets(
        scores,
        meeting.first,
        meeting.later,
        multipliers,
        head.cls_normalizer,
        head.label_smooth_eps,
        head.focal_loss,
        squared,
    )
    learns = meeting.first >= 0
    classes = jnp.where(learns[:, None], weight * cross(rows[:, 5:], wanted), 0.0)

    # With several anchors an object, boxes share with the classes that their row learns.
    parts = jnp.ones(num_rows)
    if head.iou_thresh < 1:
        rises = weight * (wanted - lax.stop_gradient(scores)) > 0
        parts = jnp.maximum(rises.sum(-1), 1.0)

    anchors = np.array([head.anchors[i] for i in head.mask], np.float32) / unit[:2]  # [A, 2]
    truths = boxes_lib.xyxy_to_cxcywh(gt_boxes) / unit  # [G, 4]
    cells = np.array(shape[::-1], np.float32)

    def box(row, slot, positive):
        """Losses of entries, each a row and an object."""
        raw = rows[row, :4]
        truth = jnp.where(positive[..., None], truths[slot], 1.0)
        weight = head.iou_normalizer * factors[gt_labels[slot]]
        if head.iou_loss == "mse":
            cell = row // len(head.mask)
            column_row = jnp.stack([cell % shape[1], cell // shape[1]], axis=-1)
            place = truth[..., :2] * cells - column_row
            growth = jnp.log(truth[..., 2:] / jnp.asarray(anchors)[row % len(head.mask)])
            misses = darknet_losses.place(raw[..., :2], place, head.scale_x_y).sum(-1)
            misses += darknet_losses.size(raw[..., 2:], growth).sum(-1)
            values = weight * (2 - truth[..., 2:].prod(-1)) * misses  # small objects count more
        else:
            growth = jnp.exp(raw[..., 2:])
            values = darknet_losses.overlap(
                raw, decoded[row], truth, growth, head.iou_loss, weight, head.max_delta
            )
        return jnp.where(positive, values / parts[row], 0.0).sum()

    slots = jnp.broadcast_to(jnp.arange(len(gt_labels)), entries.row.shape)
    boxes = box(entries.row, slots, entries.positive)
    if predicted is not None:
        boxes += box(jnp.arange(num_rows), slot, predicted >= 0)
    return boxes, objectness.sum(), classes.sum()


MODULE = Darknet

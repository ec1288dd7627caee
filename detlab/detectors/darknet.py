"""Darknet's networks, such as YOLOv3 (arXiv:1804.02767) and YOLOv4 (arXiv:2004.10934).

The field `cfg` is the text of a darknet cfg, or the name of one of the four standard networks in
`detlab/darknet/networks.py`.  The network is built from the sections of the cfg, so custom and
depthwise networks work like any other; docs/darknet.md lists the sections and options.  Anchors,
thresholds and losses are those of the [yolo] sections.  A network with channels=1 sees the
brightness of the RGB image.

Reference: AlexeyAB/darknet, commit 59596d7.  As in the reference, width and height are multiples of
an anchor's, the score of a class is objectness times the probability of the class, and `greedynms`
suppresses by IoU minus a distance measured relative to the sides of the network.
Targets and losses are in `assign/darknet.py` and `losses/darknet.py`, whose docstrings list the
deviations from darknet.

Darknet sums deltas over a batch and divides the learning rate by the batch size.  The loss here is
therefore the mean over the images of the global batch.  There is no other normaliser, so gradient
accumulation (darknet's `subdivisions`) weights the parts of a batch equally.  As in darknet, live
norms keep 0.99 of their running statistics at each step, and a [region] draws boxes without an
object to their anchors in the first images of a training, which the collection `loss_state` counts.
A canvas may have any size that the network's strides divide; anchors stay in px.

Expected: the accuracy of the converted weights; docs/darknet.md says what was checked.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, types
from detlab.assign import darknet as assign_lib
from detlab.assign import targets as targets_lib
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks
from detlab.heads import darknet as heads_lib
from detlab.losses import darknet as darknet_losses
from detlab.losses import darknet_region as region_losses
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import conv as conv_lib
from detlab.ops import nms as nms_lib
from detlab.ops import pool, reorg

ACTIVATIONS = {
    "linear": lambda x: x,
    "leaky": layers.leaky_relu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "relu": nn.relu,
    "logistic": nn.sigmoid,
    "swish": nn.swish,
}
# Brightness of RGB (ITU-R BT.601), by which OpenCV and stb_image read pictures as grey.
_BRIGHTNESS = (0.299, 0.587, 0.114)
NMS_KINDS = ("", "default", "greedynms", "diounms")


class Outputs(NamedTuple):
    """One map per head of the cfg, in order."""

    features: tuple  # empty: a cfg has no separate neck
    predictions: tuple  # [B, Hl, Wl, A * (5 + C)], 9 + C with [Gaussian_yolo]


class Convolution(nn.Module):
    """[convolutional]: a convolution, then norm or bias, then activation.

    Layers that share their parameters call one module, each with its own section.
    """

    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, layer: darknet_cfg.Convolutional, train: bool):
        dilation = 1 if layer.size == 1 else layer.dilation
        border = (layer.border * dilation,) * 2
        shape = (layer.size, layer.size, x.shape[-1] // layer.groups, layer.filters)
        kernel = self.param("kernel", layers.he_normal_out, shape).astype(self.dtype)
        if dilation == layer.groups == 1:
            x = conv_lib.conv(x, kernel, layer.stride, (border, border))
        elif dilation == 1 and layer.groups == layer.filters == x.shape[-1]:
            x = conv_lib.depthwise(x, kernel, layer.stride, (border, border))
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                (layer.stride,) * 2,
                (border, border),
                rhs_dilation=(dilation,) * 2,
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


class Shortcut(nn.Module):
    """[shortcut]: a sum, whose terms may have learned weights, then activation."""

    layer: darknet_cfg.Shortcut

    @nn.compact
    def __call__(self, x, others):
        layer, channels = self.layer, x.shape[-1]
        inputs = [x, *(other[..., :channels] for other in others)]
        if layer.weights_type != "none":
            each = (channels,) if layer.weights_type == "per_channel" else ()
            weights = self.param("weights", nn.initializers.ones, (len(inputs), *each))
            weights = normalised(weights, layer.weights_normalization).astype(x.dtype)
            weights = weights.reshape(len(inputs), -1)  # one value, or one per channel
            inputs = [y * w[: y.shape[-1]] for y, w in zip(inputs, weights, strict=True)]
        total = inputs[0]
        for y in inputs[1:]:
            missing = channels - y.shape[-1]
            total += jnp.pad(y, ((0, 0),) * 3 + ((0, missing),)) if missing else y
        return ACTIVATIONS[layer.activation](total)


def normalised(weights: jax.Array, kind: str) -> jax.Array:
    """Weights [inputs, ...] of a [shortcut], normalised by its `weights_normalization`."""
    if kind == "none":
        return weights
    if kind == "softmax":
        weights = jnp.exp(weights - weights.max(0))
    else:
        weights = jnp.maximum(weights, 0.001)
    return weights / (1e-4 + weights.sum(0))


class Network(nn.Module):
    """The layers of a cfg; parameter paths begin with `layer<number>`, numbered as in darknet."""

    network: darknet_cfg.Network
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, H, W, channels] -> the input of every head, `Outputs.predictions`, float32."""
        outputs, predictions, convolutions = [], [], {}
        for number, layer in enumerate(self.network.layers):
            match layer:
                case darknet_cfg.Convolutional():
                    owner = darknet_cfg.owner(self.network, number)
                    if owner == number:
                        conv = Convolution(self.norm, self.dtype, name=f"layer{number}")
                        convolutions[number] = conv
                    x = convolutions[owner](x, layer, train)
                case darknet_cfg.Route():
                    parts = []
                    for source in layer.layers:
                        width = outputs[source].shape[-1] // layer.groups
                        start = layer.group_id * width
                        parts.append(outputs[source][..., start : start + width])
                    x = jnp.concatenate(parts, axis=-1)
                case darknet_cfg.Shortcut():
                    others = [outputs[source] for source in layer.layers]
                    x = Shortcut(layer, name=f"layer{number}")(x, others)
                case darknet_cfg.ScaleChannels() | darknet_cfg.Sam():
                    x = ACTIVATIONS[layer.activation](outputs[layer.layers[0]] * x)
                case darknet_cfg.Upsample():
                    x = x.repeat(layer.stride, axis=1).repeat(layer.stride, axis=2) * layer.scale
                case darknet_cfg.MaxPool():
                    x = pool.max_pool(x, layer.size, layer.stride, sides(layer))
                case darknet_cfg.LocalAvgPool():
                    x = pool.mean_pool(x, layer.size, layer.stride, sides(layer))
                case darknet_cfg.AvgPool():
                    x = x.mean((1, 2), keepdims=True)
                case darknet_cfg.Reorg3d():
                    x = reorg.blocks_to_channels(x, layer.stride)
                case darknet_cfg.Reorg():
                    x = reorg.reorg(x, layer.stride)
                case darknet_cfg.Dropout():
                    if train and layer.probability > 0:
                        keep = 1 - layer.probability
                        kept = jax.random.bernoulli(self.make_rng("sample"), keep, x.shape)
                        x = jnp.where(kept, x / keep, 0)
                case darknet_cfg.Yolo() | darknet_cfg.GaussianYolo() | darknet_cfg.Region():
                    predictions.append(x.astype(jnp.float32))
            outputs.append(x)
        return tuple(predictions)


def sides(layer: darknet_cfg.MaxPool | darknet_cfg.LocalAvgPool) -> tuple[int, int]:
    """Cells of padding before and after the map: the smaller half is at the left and the top."""
    return layer.padding // 2, layer.padding - layer.padding // 2


class Darknet(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

    cfg: str = "yolov4"  # text of a cfg, or yolov3, yolov3-tiny, yolov4, yolov4-tiny
    num_classes: int = 80
    width_multiple: float = 1.0  # of the channels
    norm: str = "batch"  # stored: running statistics in training too
    # Targets: `ignore_thresh` applies to boxes with a score above this for any class.
    ignore_class_score: float = 0.25  # -1: to all boxes, as in the original darknet
    # Prediction.
    score_threshold: float = 0.005  # for objectness, and for objectness times probability
    nms_iou: float = 0.45
    nms_kind: str = ""  # default, greedynms or diounms; "": that of the last [yolo]
    multi_label: bool = True  # a box may have several classes, otherwise only its best
    class_agnostic: bool = False  # boxes of different classes suppress each other too
    num_candidates: int = 2000  # (box, class) pairs with the best scores
    max_detections: int = 200
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)
    pixel_std: Sequence[float] = (255.0, 255.0, 255.0)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32

    def check(self) -> None:
        """Raises ValueError for an invalid field, CfgError for an invalid cfg."""
        rules = (
            *fields.above(self, 0, "width_multiple"),
            fields.one_of(self, "norm", ("batch", "stored")),
            ("ignore_class_score", -1 <= self.ignore_class_score <= 1, "from -1 to 1"),
            ("nms_kind", self.nms_kind in NMS_KINDS, f"one of {', '.join(NMS_KINDS[1:])}"),
        )
        fields.check(self, rules)
        network = self.network()
        darknet_networks.check_channels(network)
        darknet_cfg.shapes(network)
        for head in self.heads():
            counters = len(head.counters_per_class)
            if counters not in (0, self.num_classes):
                raise ValueError(
                    f"num_classes is {self.num_classes}; it must be {counters}, the number of"
                    " counters_per_class in the cfg"
                )

    def check_canvas(self, height: int, width: int) -> None:
        """Raises CfgError if the layers do not fit together for images of this size."""
        try:
            darknet_cfg.shapes(self.network(), height, width)
        except darknet_cfg.CfgError as error:
            raise darknet_cfg.CfgError(
                f"images of {height}x{width} px: {error} Use sides that are multiples of the"
                " network's largest stride, often 32."
            ) from None

    def network(self) -> darknet_cfg.Network:
        """The cfg with this detector's classes and width.

        Raises:
          CfgError: see `darknet_networks.resolve`, `scaled` and `heads`.
        """
        network = darknet_networks.resolve(self.cfg)
        network = darknet_networks.scaled(network, self.width_multiple)
        return darknet_networks.with_classes(network, self.num_classes)

    def heads(self) -> list[darknet_cfg.Head]:
        """The sections that detect, such as [yolo], in order."""
        network = self.network()
        return [network.layers[number] for number in darknet_networks.heads(network)]

    def setup(self) -> None:
        self.layers = Network(self.network(), self.norm, self.dtype)
        if darknet_networks.has_region(self.network()):
            # Images seen in training, counted up to the first number that makes no difference.
            self.seen = self.variable("loss_state", "seen", jnp.zeros, (), jnp.int32)

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every head.

        Raises:
          CfgError: the layers do not fit together for images of this size.
        """
        self.check_canvas(*images.shape[1:3])
        x = layers.normalise(self, images)
        if self.network().net.channels == 1:
            x = (x * jnp.array(_BRIGHTNESS, x.dtype)).sum(-1, keepdims=True)
        return Outputs((), self.layers(x, train))

    # --------------------------------------------------------------------------------------------
    # Prediction

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The (box, class) pairs with the best scores over all heads.

        Darknet does not bound their number; here `num_candidates` does, and the worst are dropped.
        """
        boxes, scores = [], []
        for head, raw in zip(self.heads(), maps.predictions, strict=True):
            raw = raw.reshape(*raw.shape[:3], len(head.mask), -1)
            boxes.append(heads_lib.boxes(head, raw, canvas).reshape(len(raw), -1, 4))
            score = heads_lib.scores(head, raw, self.score_threshold)
            scores.append(score.reshape(len(raw), -1, self.num_classes))
        unit = np.tile(np.array(canvas[::-1], np.float32), 2)
        boxes = boxes_lib.cxcywh_to_xyxy(jnp.concatenate(boxes, axis=1)) * unit  # [B, N, 4] px
        scores = jnp.concatenate(scores, axis=1)  # [B, N, C]
        # Boxes centred on padding are dropped; with `scale_x_y` a centre may lie off the canvas.
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        size, whole = image_size[:, None, ::-1], np.array(canvas[::-1])
        inside = ((centre < size) | (size >= whole)).all(-1)  # [B, N]
        scores = jnp.where(inside[..., None], scores, 0.0)
        if not self.multi_label:
            best = scores.argmax(-1)[..., None] == jnp.arange(self.num_classes)
            scores = jnp.where(best, scores, 0.0)
        bounds.note(self, "num_candidates", scores > self.score_threshold)

        def one_image(boxes, scores):
            scores, row, label = candidates_lib.best_pairs(scores, self.num_candidates)
            return candidates_lib.above(self.score_threshold, boxes[row], scores, label)

        return jax.vmap(one_image)(boxes, scores)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression; keeps the best `max_detections` of each image.

        The canvas is assumed to have the aspect ratio of the cfg's size, and the image that of the
        canvas.
        """
        net, last = self.network().net, self.heads()[-1]
        kind = self.nms_kind or last.nms_kind
        power = last.beta_nms if kind == "diounms" else 0.6
        above = nms_lib.iou_above
        if kind != "default":
            above = functools.partial(
                nms_lib.distance_iou_above, power=power, aspect=net.width / net.height
            )
        return nms_lib.suppress_images(
            candidates,
            self.nms_iou,
            self.max_detections,
            above=above,
            by_class=not self.class_agnostic,
        )

    # --------------------------------------------------------------------------------------------
    # Training

    def anchors(
        self, head: darknet_cfg.Head, shape: tuple[int, int], canvas: tuple[int, int]
    ) -> jax.Array:
        """Anchors [N, 4] of a head's rows, xyxy px, centred in their cells."""
        stride = np.array([canvas[1] / shape[1], canvas[0] / shape[0]], np.float32)
        cell = anchors_lib.sized_anchors(heads_lib.anchor_sizes(head, shape, canvas), stride)
        return anchors_lib.grid_anchors(cell, stride, shape)

    def grid(
        self, head: darknet_cfg.Head, shape: tuple[int, int], canvas: tuple[int, int]
    ) -> anchors_lib.Grid:
        """The rows of a head."""
        return anchors_lib.Grid((canvas[0] // shape[0],), (shape,), (len(head.mask),))

    def learned(self, batch: types.Batch, maps: Outputs) -> list[assign_lib.Learned]:
        """The assignment of every head for a batch with these maps, without a gradient.

        Rows whose cells are entirely padding do not count.  In darknet they are background: its
        only padding is that of `letter_box`, which is part of the content here as well.
        """
        canvas, found = batch.images.shape[1:3], []
        for head, raw in zip(self.heads(), maps.predictions, strict=True):
            shape = raw.shape[1:3]
            grid = self.grid(head, shape, canvas)
            raw = raw.reshape(*raw.shape[:3], len(head.mask), -1)
            decoded = heads_lib.boxes(head, raw, canvas).reshape(len(raw), -1, 4)
            scores = heads_lib.probabilities(head, raw)[1].reshape(len(raw), -1, self.num_classes)

            def one_image(boxes, scores, gt_boxes, labels, valid, size, head=head, grid=grid):
                shape = grid.shapes[0]
                if head.kind == "region":
                    sizes = heads_lib.anchor_sizes(head, shape, canvas)
                    objects = gt_boxes, valid
                    of_head = assign_lib.learn_region(
                        head, sizes, boxes, self.num_classes, shape, canvas, *objects
                    )
                else:
                    objects = gt_boxes, labels, valid
                    rule = self.ignore_class_score
                    of_head = assign_lib.learn(head, boxes, scores, shape, canvas, *objects, rule)
                return of_head._replace(counts=of_head.counts & grid.inside(size))

            objects = batch.boxes, batch.labels, batch.valid, batch.image_size
            found.append(lax.stop_gradient(jax.vmap(one_image)(decoded, scores, *objects)))
        return found

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """The assignment of `learned`, as entries of all heads together.

        "main" has one entry per row, head by head: the status of its objectness, -1 where it does
        not count, and the object that was written first.  `values["objectness"]` is the target of
        the objectness: 0 where it does not count, and also for background unless
        `objectness_smooth` is set.  "entries" has one entry for each pair of anchor and object
        slot, positive where the anchor learns the object; `values["row"]` is its row in "main", 0
        where it is not positive.
        """
        canvas, slots = batch.images.shape[1:3], batch.boxes.shape[1]
        main, entries, start = [], [], 0
        heads = zip(self.heads(), maps.predictions, self.learned(batch, maps), strict=True)
        for head, raw, learned in heads:
            level = sum(other.shape[1] > raw.shape[1] for other in maps.predictions)
            boxes = self.anchors(head, raw.shape[1:3], canvas)  # [N, 4]
            rows = learned.rows
            is_object = (rows.first >= 0).astype(jnp.int32)
            main.append(
                types.Targets(
                    boxes=jnp.broadcast_to(boxes, (len(raw), *boxes.shape)),
                    level=jnp.full(is_object.shape, level),
                    status=jnp.where(learned.counts, is_object, -1),
                    matched=jnp.maximum(rows.first, 0),
                    values={"objectness": jnp.where(learned.counts, learned.objectness, 0.0)},
                )
            )
            row = learned.entries.row.reshape(len(raw), -1)  # [B, A * G]
            positive = learned.entries.positive.reshape(row.shape)
            status = jnp.where(positive, 1, -1)
            slot = jnp.broadcast_to(jnp.tile(jnp.arange(slots), len(head.mask)), row.shape)
            entries.append(
                types.Targets(
                    boxes=boxes[row],
                    level=jnp.full(row.shape, level),
                    status=status,
                    matched=slot,
                    values=targets_lib.of_positives(status, {"row": row + start}),
                )
            )
            start += boxes.shape[0]
        together = functools.partial(jax.tree.map, lambda *x: jnp.concatenate(x, axis=1))
        return {"main": together(*main), "entries": together(*entries)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses whose negative gradients are darknet's deltas: boxes, objectness and classes.

        It uses `learned`, from which `targets` is derived too, and counts the images for [region].
        As in darknet, whose count includes the images of the part of a batch that it is at, the
        whole part is early or not.
        """
        canvas = batch.images.shape[1:3]
        if darknet_networks.has_region(self.network()):
            seen = self.seen.value + len(batch.images)
            is_early = seen < region_losses.EARLY_IMAGES
            self.seen.value = jnp.minimum(seen, region_losses.EARLY_IMAGES)
        terms = {"loss/box": 0.0, "loss/objectness": 0.0, "loss/cls": 0.0}
        counts = {"positives": 0.0, "ignored": 0.0}
        heads = zip(self.heads(), maps.predictions, self.learned(batch, maps), strict=True)
        for head, raw, learned in heads:
            shape = raw.shape[1:3]
            raw = raw.reshape(*raw.shape[:3], len(head.mask), -1)

            def one_image(size, rows, decoded, *of_image, head=head, shape=shape):
                anchors = self.anchors(head, shape, canvas)
                if head.kind == "region":
                    given = head, rows, anchors, shape, canvas
                    drawn = is_early & self.grid(head, shape, canvas).inside(size)
                    return [t.sum() for t in region_losses.head_terms(*given, *of_image, drawn)]
                of = heads_lib.parts(head, rows)
                values = jnp.concatenate(of[:3], axis=-1)
                given = head, values, decoded, anchors, shape, canvas
                found = darknet_losses.head_terms(*given, *of_image, of.uncertainty)
                return [head.delta_normalizer * term.sum() for term in found]

            rows = raw.reshape(len(raw), -1, raw.shape[-1])  # [B, N, 5 + C]
            decoded = heads_lib.boxes(head, raw, canvas).reshape(len(raw), -1, 4)
            of_images = batch.image_size, rows, decoded, learned, batch.boxes, batch.labels
            sums = jax.vmap(one_image)(*of_images)
            terms = {
                name: term + x.mean() for (name, term), x in zip(terms.items(), sums, strict=True)
            }
            counts["positives"] += learned.entries.positive.sum() / len(raw)
            counts["ignored"] += (~learned.counts).sum() / len(raw)
        return sum(terms.values()), {**terms, **counts}

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return ("batch_stats/.*",) if self.norm == "stored" else ()


MODULE = Darknet

"""YOLOv5 n, s, m, l and x, releases 3.0 to 7.0 (ultralytics/yolov5; there is no paper).

YOLOv5 has a backbone of cross-stage-partial blocks and a pyramid with a top-down and a bottom-up
path.  Every anchor of a cell predicts a centre at most half a cell outside the cell, a size of at
most four times the anchor's, objectness, and an independent probability for each class.

Reference: the code of the releases; docs/yolov5.md has the commits and what changed between them.
The defaults are those of YOLOv5s in releases 6.0 to 7.0.  Release 3.0 has `block` "csp",
`activation` "hard_swish", `stem` "focus", `pool` "spp" and `repeats` (3, 9, 9, 3).
experiments/yolov5_coco.py has all of them as variants, and converters.convert detects which one a
file belongs to.

As in the reference, the box term is 1 - CIoU, also in release 3.0, which calls it giou, and the
aspect ratio counts in it at any IoU.  The target of objectness is that CIoU, at least 0 and without
a gradient.  A cell may learn several objects (see `assign.yolov5`): all of them count in the box
and class terms, and objectness learns the last one.  Each term is a mean over the entries or cells
of a level, summed over the levels.

The reference multiplies the sum by the number of images in a batch, and accumulates batches until
they have 64 images.  Here the loss is the sum times `summed_images`, so it does not depend on the
batch size; gradient accumulation weights the parts of a batch equally.  Live norms use the
statistics of the global batch.  Cells that are entirely padding are ignored; the border of a
letterbox is content, as in the reference.  Boxes are not clipped to the image.

Expected: COCO val2017 AP at 640 px, the published figures of the reference: 28.0 (n), 37.4 (s),
45.4 (m), 49.0 (l), 50.7 (x) for release 7.0; 37.0, 44.3, 47.7, 49.2 (s to x) for 3.0.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, types
from detlab.assign import targets as targets_lib
from detlab.assign import yolov5 as entries_lib
from detlab.backbones import yolov5
from detlab.losses import cross_entropy
from detlab.necks import pan
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, Dl]
    predictions: tuple  # [B, Hl, Wl, A * (5 + C)]: x, y, w, h, objectness, classes


class Head(nn.Module):
    """One predicting 1x1 convolution per level: `predict3`, `predict4`, ..."""

    channels: int  # A * (5 + C)
    bias_inits: Sequence[Callable]  # of each level
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features):
        """(P3, P4, ...) -> maps [B, Hl, Wl, A * (5 + C)], float32."""
        maps = []
        for level, (x, bias_init) in enumerate(
            zip(features, self.bias_inits, strict=True), start=3
        ):
            predictor = layers.Conv(
                self.channels,
                1,
                kernel_init=yolov5.torch_uniform,
                bias_init=bias_init,
                dtype=self.dtype,
                name=f"predict{level}",
            )
            maps.append(predictor(x).astype(jnp.float32))
        return tuple(maps)


class YOLOv5(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

    num_classes: int = 80
    # Network: fields in which the sizes n, s, m, l and x differ, ...
    depth_multiple: float = 0.33
    width_multiple: float = 0.5
    # ... those in which the releases differ (see `backbones.yolov5`), ...
    block: str = "c3"
    activation: str = "silu"
    stem: str = "conv6"
    pool: str = "sppf"
    repeats: Sequence[int] = (3, 6, 9, 3)  # of each stage; five in networks up to stride 64
    # ... and those that are nearly always the same.
    pool_size: int = 5
    neck_repeats: int = 3
    norm: str = "batch"
    # Width and height of the anchors of each level, px, finest first.
    anchor_sizes: Sequence[Sequence[Sequence[float]]] = (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    )
    # Targets and losses: the reference's `hyp`, with its names in the comments.
    anchor_ratio: float = 4.0  # anchor_t: largest ratio of an object's and its anchor's sides
    box_gain: float = 0.05  # box, giou; all gains are for three levels
    objectness_gain: float = 1.0  # obj; for images of 640 px, ...
    train_size: int = 640  # ... and scaled by the area of images of this size, px
    class_gain: float = 0.5  # cls; for 80 classes, and scaled by their number
    level_balance: Sequence[float] = (4.0, 1.0, 0.4)  # of objectness, finest level first
    label_smoothing: float = 0.0
    summed_images: float = 64.0  # the loss is a mean over the images, times this
    # Prediction.
    score_threshold: float = 0.001  # of objectness times probability
    nms_iou: float = 0.6
    multi_label: bool = True  # a box may have several classes, otherwise only its best
    class_agnostic: bool = False  # boxes of different classes suppress each other too
    num_candidates: int = 3000  # (box, class) pairs with the best scores
    max_detections: int = 300
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)
    pixel_std: Sequence[float] = (255.0, 255.0, 255.0)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        levels = len(self.repeats) - 1
        as_many = f"for each of {levels} levels, one fewer than repeats"
        rules = (
            *fields.at_least(self, 1, "neck_repeats", "train_size"),
            *fields.above(self, 0, "depth_multiple", "width_multiple"),
            fields.one_of(self, "block", yolov5.BLOCKS),
            fields.one_of(self, "activation", yolov5.ACTIVATIONS),
            fields.one_of(self, "stem", yolov5.STEMS),
            fields.one_of(self, "pool", yolov5.POOLS),
            (
                "repeats",
                fields.positive(self.repeats, None, int) and levels in yolov5.CHANNELS,
                "four or five bottleneck counts above 0",
            ),
            ("pool_size", self.pool_size >= 1 and self.pool_size % 2 == 1, "odd and at least 1"),
            fields.one_of(self, "norm", ("batch", "stored", "frozen")),
            (
                "anchor_sizes",
                fields.sizes(self.anchor_sizes, levels),
                f"pairs (width, height) above 0, equally many {as_many}",
            ),
            *fields.above(self, 1, "anchor_ratio"),
            *fields.at_least(self, 0, "box_gain", "objectness_gain", "class_gain"),
            (
                "level_balance",
                fields.positive(self.level_balance, levels),
                f"a number above 0 {as_many}",
            ),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
        )
        fields.check(self, rules)

    def check_canvas(self, height: int, width: int) -> None:
        """Raises ValueError unless the coarsest stride divides both sides."""
        coarsest = self.strides[-1]
        if height % coarsest or width % coarsest:
            raise ValueError(
                f"YOLOv5 needs sides that are multiples of {coarsest}, not {height}x{width} px"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each level, px."""
        return tuple(8 * 2**i for i in range(len(self.repeats) - 1))

    @property
    def anchors_per_cell(self) -> int:
        return len(self.anchor_sizes[0])

    @property
    def channels_per_anchor(self) -> int:
        """The number of predictions per anchor: x, y, w, h, objectness, classes."""
        return 5 + self.num_classes

    def setup(self) -> None:
        activation = yolov5.ACTIVATIONS[self.activation]
        common = dict(norm=self.norm, activation=activation, dtype=self.dtype)
        self.backbone = yolov5.Backbone(
            self.repeats,
            self.depth_multiple,
            self.width_multiple,
            self.block,
            self.stem,
            self.pool,
            self.pool_size,
            remat=self.remat,
            **common,
        )
        self.neck = pan.PAN(
            conv=functools.partial(yolov5.conv_norm, **common),
            block=functools.partial(
                yolov5.Block,
                depth=yolov5.scaled_depth(self.neck_repeats, self.depth_multiple),
                shortcut=False,
                kind=self.block,
                **common,
            ),
        )
        channels = self.anchors_per_cell * self.channels_per_anchor
        widths = yolov5.widths_of(len(self.strides), self.width_multiple)[2:]
        biases = [
            prior_bias(self.anchors_per_cell, self.num_classes, width, stride)
            for width, stride in zip(widths, self.strides, strict=True)
        ]
        self.head = Head(channels, biases, dtype=self.dtype)

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level.

        Raises:
          ValueError: the coarsest stride does not divide both sides.
        """
        self.check_canvas(*images.shape[1:3])
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, self.head(features))

    # --------------------------------------------------------------------------------------------
    # Targets and losses

    def entries(self, batch: types.Batch) -> entries_lib.Entries:
        """The assignment of every level, [B, L, E, ...], without a gradient."""
        strides = jnp.array(self.strides)
        sizes = jnp.array(self.anchor_sizes, jnp.float32)  # [L, A, 2]

        def one_image(boxes, valid, image_size):
            cells = -(-image_size // strides[:, None])  # [L, 2] cells with content

            def one_level(sizes, stride, cells):
                return entries_lib.assign(boxes, valid, sizes, stride, cells, self.anchor_ratio)

            return jax.vmap(one_level)(sizes, strides, cells)

        found = jax.vmap(one_image)(batch.boxes, batch.valid, batch.image_size)
        return lax.stop_gradient(found)

    def anchors_of(self, entries: entries_lib.Entries) -> jax.Array:
        """Width and height of the anchors of entries, [B, L, E, 2] px."""
        sizes = jnp.array(self.anchor_sizes, jnp.float32)  # [L, A, 2]
        return jax.vmap(lambda of_level, which: of_level[which], (0, 1), 1)(sizes, entries.anchor)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Entries (object, anchor, neighbour) of all levels, -1 if unused; `maps` is not used.

        `boxes` are the anchors, centred in the cells that learn.  `values` has "xywh": the centre
        relative to the corner of that cell, width and height, all in cells, and zero in unused
        entries.
        """
        entries = self.entries(batch)
        strides = jnp.array(self.strides, jnp.float32)[:, None]  # [L, 1] px
        cells = jnp.stack([entries.column, entries.row], axis=-1)  # [B, L, E, 2]
        middles = (cells + 0.5) * strides[..., None]
        anchors = jnp.concatenate([middles, self.anchors_of(entries)], axis=-1)
        level = jnp.broadcast_to(jnp.arange(len(self.strides))[:, None], entries.valid.shape)
        status = jnp.where(entries.valid, 1, -1)
        targets = types.Targets(
            boxes=boxes_lib.cxcywh_to_xyxy(anchors),
            level=level,
            status=status,
            matched=entries.matched,
            values=targets_lib.of_positives(status, {"xywh": entries.xywh}),
        )
        flat = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), targets)
        return {"main": flat}

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N anchors on a canvas (height, width), the rows of flattened maps."""
        return anchors_lib.grid(canvas, self.strides, self.anchors_per_cell)

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """CIoU loss for boxes, cross entropy for objectness and classes; M = L * E entries.

        It uses `entries`, from which `targets` is derived too.  Equal ones are joined, so that E is
        3 * A * G here.
        """
        rows = anchors_lib.flatten_levels(maps.predictions, self.channels_per_anchor)  # [B, N, ..]
        grid = self.grid(batch.images.shape[1:3])
        entries, number, last = jax.vmap(jax.vmap(entries_lib.join))(self.entries(batch))
        starts = np.array([part.start for part in grid.slices()])[:, None]  # [L, 1]
        columns = np.array([width for _, width in grid.shapes])[:, None]
        row = (entries.row * columns + entries.column) * self.anchors_per_cell + entries.anchor
        # Each level is a mean: the weights of its entries add up to 1.
        count = number.sum((0, 2))  # [L]
        weight = number / jnp.maximum(count, 1)[:, None]
        unit = jnp.array(self.strides, jnp.float32)[:, None, None]
        sizes = self.anchors_of(entries) / unit  # cells

        def flat(values):  # [B, L, E, ...] -> [B, M, ...]
            return values.reshape(values.shape[0], -1, *values.shape[3:])

        row, weight, sizes = flat(starts + row), flat(weight), flat(sizes)
        learning = jnp.take_along_axis(rows, row[..., None], axis=1)  # [B, M, 5 + C]

        center, size = decode(learning[..., :4], sizes)
        boxes = boxes_lib.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))
        wanted = boxes_lib.cxcywh_to_xyxy(flat(entries.xywh))
        overlap = boxes_lib.ciou(boxes, wanted, ratio_above=-1.0)  # [B, M]

        valid = flat(entries.valid)
        order = jnp.where(entries.valid, last, -1)
        quality = self.objectness_targets(rows.shape[1], row, flat(order), overlap)  # [B, N]
        of_rows = self.row_weights(grid, batch.image_size)
        objectness = cross_entropy.sigmoid_cross_entropy(rows[..., 4], quality)

        labels = jnp.take_along_axis(batch.labels, flat(entries.matched), axis=1)  # [B, M]
        one_hot = jax.nn.one_hot(labels, self.num_classes)
        one_hot = one_hot * (1 - self.label_smoothing) + self.label_smoothing / 2
        classes = cross_entropy.sigmoid_cross_entropy(learning[..., 5:], one_hot).mean(-1)

        sums = {
            "loss/box": (weight * jnp.where(valid, 1 - overlap, 0.0)).sum(),
            "loss/objectness": (of_rows * objectness).sum(),
            # A single class is not learned: objectness says it all.
            "loss/cls": (weight * classes).sum() if self.num_classes > 1 else 0.0,
        }
        terms = {name: gain * sums[name] for name, gain in self.gains().items()}
        return sum(terms.values()), {**terms, "positives": count.sum() / len(batch.images)}

    def gains(self) -> dict[str, float]:
        """The factor of each term, scaled as the reference's train.py scales `hyp`."""
        scale = self.summed_images * 3 / len(self.strides)
        return {
            "loss/box": scale * self.box_gain,
            "loss/objectness": scale * self.objectness_gain * (self.train_size / 640) ** 2,
            "loss/cls": scale * self.class_gain * self.num_classes / 80,
        }

    def row_weights(self, grid: anchors_lib.Grid, image_size: jax.Array) -> jax.Array:
        """[B, N] weights of each row's objectness: the level's balance, divided by its cells."""
        inside = jax.vmap(grid.inside)(image_size)  # [B, N]
        levels = [inside[:, part] for part in grid.slices()]
        weights = [
            balance * level / jnp.maximum(level.sum(), 1)
            for balance, level in zip(self.level_balance, levels, strict=True)
        ]
        return jnp.concatenate(weights, axis=1)

    def objectness_targets(self, length: int, row, order, overlap) -> jax.Array:
        """Targets of objectness [B, N]: the overlap of the last entry of a row, or 0.

        Args:
          length: N.
          row: [B, M] int, the row of each entry.
          order: [B, M] int, different numbers within a row; -1 if not valid.
          overlap: [B, M] CIoU of each entry's box.
        """

        def one_image(row, order, overlap):
            last = jnp.full(length, -1).at[row].max(order)  # [N], whatever the order of writes
            is_last = (order >= 0) & (order == last[row])
            return jnp.zeros(length).at[row].add(jnp.where(is_last, overlap, 0.0))

        return jax.vmap(one_image)(row, order, jnp.maximum(lax.stop_gradient(overlap), 0.0))

    # --------------------------------------------------------------------------------------------
    # Prediction

    def split(self, predictions: Sequence[jax.Array]) -> list[jax.Array]:
        """Raw maps -> xywh [B, N, 4], objectness [B, N] and class logits [B, N, C]."""
        rows = anchors_lib.flatten_levels(predictions, self.channels_per_anchor)  # [B, N, 5 + C]
        return [rows[..., :4], rows[..., 4], rows[..., 5:]]

    def boxes(self, xywh: jax.Array, grid: anchors_lib.Grid, which=slice(None)) -> jax.Array:
        """Boxes [..., M, 4] xyxy px from predicted xywh, of all rows of a grid or `which` [M]."""
        cells = list(map(anchors_lib.sized_anchors, self.anchor_sizes, self.strides))
        stride = grid.stride()[which][:, None]  # [M, 1] px
        anchors = boxes_lib.xyxy_to_cxcywh(grid.anchors(cells))[which]  # centred in cells
        offset, size = decode(xywh, anchors[:, 2:])
        center = anchors[:, :2] + (offset - 0.5) * stride
        return boxes_lib.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The (box, class) pairs with the best scores over all levels."""
        grid = self.grid(canvas)
        xywh, objectness, logits = self.split(maps.predictions)
        scores = nn.sigmoid(objectness)[..., None] * nn.sigmoid(logits)
        inside = jax.vmap(grid.inside)(image_size)  # [B, N]
        scores = jnp.where(inside[..., None], scores, 0.0)  # [B, N, C]
        of_boxes = scores if self.multi_label else scores.max(-1)
        bounds.note(self, "num_candidates", of_boxes > self.score_threshold)

        def one_image(xywh, scores):
            # The best K pairs are among the K rows with the best scores: far fewer to sort.
            best, row = lax.top_k(scores.max(-1), min(self.num_candidates, len(scores)))
            if self.multi_label:
                best, of_row, label = candidates_lib.best_pairs(scores[row], self.num_candidates)
                row = row[of_row]
            else:
                label = scores[row].argmax(-1).astype(jnp.int32)
            boxes = self.boxes(xywh[row], grid, row)
            return candidates_lib.above(self.score_threshold, boxes, best, label)

        return jax.vmap(one_image)(xywh, scores)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(
            candidates, self.nms_iou, self.max_detections, by_class=not self.class_agnostic
        )

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        paths = ("batch_stats/.*",) if self.norm in ("stored", "frozen") else ()
        return (*paths, "params/.*norm/.*") if self.norm == "frozen" else paths


def decode(xywh: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Centres [..., 2], in cells from the cell's corner, and sizes [..., 2], in the anchors' unit.

    Args:
      xywh: [..., 4] raw predictions.
      sizes: [..., 2] of the anchors, in any unit.
    """
    place = nn.sigmoid(xywh)
    return 2 * place[..., :2] - 0.5, (2 * place[..., 2:]) ** 2 * sizes


def prior_bias(anchors: int, num_classes: int, width: int, stride: int) -> Callable:
    """Initialiser of a predictor's bias [A * (5 + C)] that expects 8 objects in 640 x 640 px.

    As in the reference, an object is expected to have 0.6 classes, and the values are added to
    PyTorch's default initial values, uniform in +-1 / sqrt(fan in).
    """
    of_anchor = np.zeros(5 + num_classes, np.float32)
    of_anchor[4] = math.log(8 / (640 / stride) ** 2)
    of_anchor[5:] = math.log(0.6 / (num_classes - 0.99999))
    prior = np.tile(of_anchor, anchors)

    def init(key, shape):
        bound = 1 / math.sqrt(width)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound) + prior

    return init


MODULE = YOLOv5

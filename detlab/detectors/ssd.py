"""SSD: Single Shot MultiBox Detector (arXiv:1512.02325).

Feature maps of six or seven sizes, without a top-down path, each predict objects of their own size
from default boxes (anchors).  A softmax over the classes and the background scores each anchor, and
of the many background anchors only the hardest are learned.

Reference: mmdetection's `ssd300_coco` and `ssd512_coco`.  As in the reference, and unlike the
paper, an image without positives counts as one in the normaliser, and prediction takes the best
pairs of each level with scores above 0.02 (paper: all above 0.01).  The normaliser is the number of
positives of the global batch; the reference counts per GPU.  Anchors in cells that are entirely
padding are ignored.

Any canvas on which each level has a cell is accepted; the reference raises if it is not 300 or 512
px.  Anchors have the sides that they have on an input of `input_size` px.  Levels that do not pad
spread their few cells evenly over the canvas, which gives the strides 100 and 300 of SSD300.

Expected: COCO val2017 AP 25.5 with experiments/ssd_coco.py, 29.5 with its variant `512` (the
published figures of the reference); 0.43 on the shapes with experiments/ssd_shapes.py and 0.58 with
its variant `192`, seed 0.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from detlab import bounds, fields, layers, sharding, types
from detlab.assign import hard_negatives, max_iou
from detlab.assign import targets as targets_lib
from detlab.backbones import vgg
from detlab.losses import cross_entropy, regression
from detlab.necks import ssd as neck
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per level, finest first."""

    features: tuple  # [B, Hl, Wl, Dl]
    cls_logits: tuple  # [B, Hl, Wl, Al * (C + 1)], background last
    box_deltas: tuple  # [B, Hl, Wl, Al * 4]


class Examples(NamedTuple):
    """What the loss terms compare, for every anchor."""

    cls_logits: jax.Array  # [B, N, C + 1]
    box_deltas: jax.Array  # [B, N, 4]
    labels: jax.Array  # [B, N] C where not positive
    delta_targets: jax.Array  # [B, N, 4] zero where not positive
    matched: jax.Array  # [B, N] slot of the object
    negative: jax.Array  # [B, N] bool
    positive: jax.Array  # [B, N] bool


class Head(nn.Module):
    """Two 3x3 convolutions on each level, which share nothing (section 2.1).

    Parameter paths: `cls_logits0`, `box_deltas0`, ..., counted from the finest level.
    """

    num_classes: int
    anchors: Sequence[int]  # in a cell of each level
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features):
        """One map per level -> cls_logits and box_deltas of `Outputs`, float32."""

        def predict(name, channels):
            common = dict(kernel_init=neck.xavier_uniform, dtype=self.dtype)
            return tuple(
                layers.Conv(count * channels, name=f"{name}{i}", **common)(x).astype(jnp.float32)
                for i, (x, count) in enumerate(zip(features, self.anchors, strict=True))
            )

        return predict("cls_logits", self.num_classes + 1), predict("box_deltas", 4)


class SSD(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

    num_classes: int = 80
    # VGG16, and the layers after it: (channels, kernel size, stride, padding) of each.
    backbone_convs: Sequence[int] = (2, 2, 3, 3, 3)
    backbone_width: int = 64
    fc_width: int = 1024
    norm: str = "none"  # of these; batch, to train from random weights
    extra_layers: Sequence[Sequence[int]] = (
        (512, 3, 2, 1),
        (256, 3, 2, 1),
        (256, 3, 1, 0),
        (256, 3, 1, 0),
    )
    # Anchors: the sides of the small squares in percent of `input_size` px, one for each level and
    # one more; and the ratios of a cell's other boxes, long / short (section 2.2, "Choosing scales
    # and aspect ratios").
    input_size: int = 300
    side_percents: Sequence[float] = (7, 15, 33, 51, 69, 87, 105)
    level_ratios: Sequence[Sequence[float]] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    clip_anchors: bool = False  # no side above `input_size`, as in torchvision
    delta_stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2)
    # Targets and losses.
    positive_iou: float = 0.5
    negative_iou: float = 0.5
    negatives_per_positive: float = 3.0
    smooth_l1_beta: float = 1.0
    # Prediction.
    candidates_per_level: int = 1000
    score_threshold: float = 0.02
    nms_iou: float = 0.45
    max_detections: int = 200
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        levels, percents, ratios = 2 + len(self.extra_layers), self.side_percents, self.level_ratios
        rising = fields.positive(percents, levels + 1) and sorted(set(percents)) == list(percents)
        of_levels = isinstance(ratios, tuple) and len(ratios) == levels
        rules = (
            *fields.at_least(self, 1, "backbone_width", "fc_width", "input_size"),
            fields.one_of(self, "norm", ("none", "batch")),
            (
                "backbone_convs",
                fields.positive(self.backbone_convs, 5, int),
                "the numbers of convolutions of five stages, above 0",
            ),
            (
                "extra_layers",
                all(_is_layer(layer) for layer in self.extra_layers),
                "channels (at least 2), kernel size, stride and padding of each layer",
            ),
            (
                "side_percents",
                rising,
                f"{levels + 1} rising numbers above 0, one more than there are levels",
            ),
            (
                "level_ratios",
                of_levels and all(x == () or fields.positive(x) for x in ratios),
                f"{levels} tuples of numbers above 0, one for each level",
            ),
            *fields.at_least(self, 0, "negatives_per_positive"),
            *fields.above(self, 0, "smooth_l1_beta"),
        )
        fields.check(self, rules)

    def check_canvas(self, height: int, width: int) -> None:
        """Raises ValueError for a canvas on which a level would have no cell."""
        shapes = self.grid((height, width)).shapes
        for level, cells in enumerate(shapes):
            if min(cells) < 1:
                raise ValueError(
                    f"{height}x{width} px leave no cell for level {level} of {len(shapes)}; use a"
                    " larger canvas or fewer config.model.extra_layers"
                )

    @property
    def anchors_per_cell(self) -> tuple[int, ...]:
        return tuple(2 + 2 * len(ratios) for ratios in self.level_ratios)

    def setup(self) -> None:
        self.backbone = vgg.VGG(
            self.backbone_convs,
            self.backbone_width,
            self.fc_width,
            self.norm,
            self.remat,
            dtype=self.dtype,
        )
        extras = [neck.Extra(*layer) for layer in self.extra_layers]
        self.neck = neck.SSDNeck(extras, self.norm, dtype=self.dtype)
        self.head = Head(self.num_classes, self.anchors_per_cell, dtype=self.dtype)

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, *self.head(features))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N anchors on a canvas (height, width)."""
        strides = [(8, 8), (16, 16)]  # x, y px
        shapes = [tuple(-(-side // y) for side in canvas) for _, y in strides]
        for layer in map(neck.Extra._make, self.extra_layers):
            shapes.append(tuple(layer.cells(cells) for cells in shapes[-1]))
            if layer.covers:
                strides.append(tuple(layer.stride * px for px in strides[-1]))
            else:
                (height, width), (rows, columns) = canvas, shapes[-1]
                strides.append((width / max(columns, 1), height / max(rows, 1)))
        return anchors_lib.Grid(tuple(strides), tuple(shapes), self.anchors_per_cell)

    def anchors(self, grid: anchors_lib.Grid) -> jax.Array:
        """The anchors [N, 4] of all levels, xyxy px."""
        sides = [int(self.input_size * percent / 100) for percent in self.side_percents]
        sizes = map(anchors_lib.ssd_sizes, sides, sides[1:], self.level_ratios)
        if self.clip_anchors:
            sizes = (np.minimum(level, self.input_size) for level in sizes)
        return grid.anchors(list(map(anchors_lib.sized_anchors, sizes, grid.strides)))

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to anchors (section 2.2, "Matching strategy"); `maps` is not used.

        `values` has the deltas, which are zero where an anchor is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        assign = functools.partial(
            max_iou.assign,
            pos_iou=self.positive_iou,
            neg_iou=self.negative_iou,
            all_ties=False,
        )
        found = targets_lib.of_deltas(batch, grid, self.anchors(grid), assign, self.delta_stds)
        return {"main": found}

    def examples(self, batch: types.Batch, maps: Outputs) -> Examples:
        """The predictions and the targets of every anchor."""
        targets = self.targets(batch, maps)["main"]
        positive = targets.status == 1
        labels = jnp.take_along_axis(batch.labels, targets.matched, axis=1)
        return Examples(
            cls_logits=anchors_lib.flatten_levels(maps.cls_logits, self.num_classes + 1),
            box_deltas=anchors_lib.flatten_levels(maps.box_deltas, 4),
            labels=jnp.where(positive, labels, self.num_classes),
            delta_targets=targets.values["deltas"],
            matched=targets.matched,
            negative=targets.status == 0,
            positive=positive,
        )

    def unreduced(self, found: Examples) -> tuple[jax.Array, jax.Array]:
        """(cross entropy, smooth L1) of each anchor, [B, N]; zero where it is not learned.

        Of the negatives of an image, the hardest are learned, `negatives_per_positive` times as
        many as there are positives (section 2.2, "Hard negative mining").
        """
        cls = cross_entropy.softmax_cross_entropy(found.cls_logits, found.labels)
        num = (self.negatives_per_positive * found.positive.sum(1)).astype(jnp.int32)
        # A top-k of the batch as a whole would gather all images on every device.
        hardest = sharding.per_device(jax.vmap(hard_negatives.hardest))
        learned = found.positive | hardest(cls, found.negative, num)
        box = regression.smooth_l1(found.box_deltas, found.delta_targets, self.smooth_l1_beta)
        box = jnp.where(found.positive, box.sum(-1), 0.0)
        return jnp.where(learned, cls, 0.0), box

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy plus smooth L1 on deltas, divided by the number of positives (eq. 1)."""
        found = self.examples(batch, maps)
        cls, box = self.unreduced(found)
        return self.reduced(found, {"loss/cls": cls, "loss/box": box})

    def reduced(
        self, found: Examples, losses: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and its metrics from the terms [B, N] of every anchor."""
        # At least one per image, as in the reference: empty images must not divide by zero.
        normaliser = jnp.maximum(found.positive.sum(1), 1).sum().astype(jnp.float32)
        terms = {name: term.sum() / normaliser for name, term in losses.items()}
        positives = found.positive.sum() / found.positive.shape[0]
        return sum(terms.values()), {**terms, "positives": positives, "normaliser": normaliser}

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (anchor, class) pairs of each level."""
        grid = self.grid(canvas)
        anchors = self.anchors(grid)
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes + 1)
        inside = jax.vmap(grid.inside)(image_size)  # [B, N]
        scores = jnp.where(inside[..., None], nn.softmax(logits)[..., :-1], 0.0)  # [B, N, C]
        levels = [scores[:, part] for part in grid.slices()]
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in levels))
        deltas = anchors_lib.flatten_levels(maps.box_deltas, 4)  # [B, N, 4]

        def one_image(levels, deltas, size):
            scores, anchor, label = candidates_lib.level_pairs(levels, self.candidates_per_level)
            boxes = coders.decode_deltas(
                anchors[anchor], deltas[anchor], stds=self.delta_stds, max_size=size
            )
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(levels, deltas, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes: none."""
        return ()


def _is_layer(layer: Sequence[int]) -> bool:
    """Whether these can be the four numbers of an extra layer."""
    whole = fields.numbers(layer, 4, int)
    return whole and layer[0] >= 2 and min(layer[1:3]) >= 1 and layer[3] >= 0


MODULE = SSD

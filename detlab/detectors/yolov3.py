"""YOLOv3: An Incremental Improvement (arXiv:1804.02767), as mmdetection trains it.

Every anchor of a grid cell predicts a position in the cell, a size relative to its own, whether
there is an object (objectness), and an independent probability for each class.

Reference: mmdetection's `yolov3_d53_8xb8-ms-608-273e_coco`.  As in the reference, and unlike the
paper and darknet, all anchors in the cell of an object's centre may learn it (`assign.yolov3`), the
losses of width and height are squared errors that are not weighted by size, and prediction applies
the threshold and selects candidates by the class score alone, which objectness multiplies
afterwards.  Boxes are not clipped to the image.

The reference sums its losses over the 8 images of a GPU and averages the gradients of the GPUs.
Here the loss is the mean over the global batch times `summed_images`, so it does not depend on the
batch size.  There is no other normaliser, so gradient accumulation weights the parts of a batch
equally.  Live norms use the statistics of the global batch, in the reference those of a GPU.  Cells
that are entirely padding are ignored; in the reference they are background.

Expected: COCO val2017 AP 33.4 with experiments/yolov3_coco.py, 30.9 at 416 px with its variant
`416`, 27.9 at 320 px with `320` (the published figures of the reference); 0.53 on the shapes with
experiments/yolov3_shapes.py, seed 0.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import targets as targets_lib
from detlab.assign import yolov3 as assign_lib
from detlab.backbones import darknet53
from detlab.losses import cross_entropy
from detlab.necks import yolov3 as neck
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib

LEVELS = (3, 4, 5)  # P3, P4, P5
STRIDES = (8, 16, 32)


class Outputs(NamedTuple):
    """One map per pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, D]
    predictions: tuple  # [B, Hl, Wl, A * (5 + C)]: x, y, w, h, objectness, classes


class Head(nn.Module):
    """A 3x3 convolution and a predicting 1x1 convolution for each level.

    Parameter paths: `bridge3/{conv,norm}`, `predict3`, ...; the number is the pyramid level.
    """

    width: int  # of P3; each coarser level has twice the channels
    channels: int  # A * (5 + C)
    bias_inits: Sequence[Callable]  # of the predictor of each level
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P3, P4, P5) -> maps [B, Hl, Wl, A * (5 + C)], float32."""
        maps = []
        for level, x, bias_init in zip(LEVELS, features, self.bias_inits, strict=True):
            x = layers.ConvNorm(
                self.width * 2 ** (level - 3),
                norm="batch",
                activation=layers.leaky_relu,
                kernel_init=layers.normal_001,
                dtype=self.dtype,
                name=f"bridge{level}",
            )(x, train)
            predictor = layers.Conv(
                self.channels,
                1,
                kernel_init=layers.normal_001,
                bias_init=bias_init,
                dtype=self.dtype,
                name=f"predict{level}",
            )
            maps.append(predictor(x).astype(jnp.float32))
        return tuple(maps)


class YOLOv3(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

    num_classes: int = 80
    # Backbone, neck and head; the norms of the latter two are live.
    backbone_norm: str = "stored"
    backbone_width: int = 32  # of the stem
    backbone_blocks: Sequence[int] = (1, 2, 8, 8, 4)
    neck_width: int = 128  # of P3
    head_width: int = 256  # of P3
    prior_objects: float = 8.0  # initially expected on each level of a 608 px image
    prior_probability: float = 0.01  # of each class, initially
    # Width and height of the anchors of each level, px, finest first (section 2.3).
    anchor_sizes: Sequence[Sequence[Sequence[float]]] = (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    )
    # Targets and losses.
    positive_iou: float = 0.5
    negative_iou: float = 0.5
    min_positive_iou: float = 0.0  # of an object's best anchor
    class_weight: float = 1.0
    objectness_weight: float = 1.0
    xy_weight: float = 2.0
    wh_weight: float = 2.0
    summed_images: float = 8.0  # the loss is the mean over the images, times this
    # Prediction.
    objectness_threshold: float = 0.005
    score_threshold: float = 0.05  # of the class score, without objectness
    num_candidates: int = 1000
    nms_iou: float = 0.45
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)
    pixel_std: Sequence[float] = (255.0, 255.0, 255.0)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        blocks, objects = self.backbone_blocks, self.prior_objects
        of_a_map = (608 // max(STRIDES)) ** 2  # cells
        rules = (
            *fields.at_least(self, 1, "backbone_width"),
            fields.one_of(self, "backbone_norm", ("batch", "stored", "frozen")),
            ("backbone_blocks", fields.positive(blocks, 5, int), "five block counts above 0"),
            ("prior_objects", 0 < objects < of_a_map, f"above 0 and below {of_a_map}"),
            (
                "anchor_sizes",
                fields.sizes(self.anchor_sizes, len(LEVELS)),
                "pairs (width, height) above 0 for each of three levels, equally many for each",
            ),
            *fields.fractions(self, "min_positive_iou", "objectness_threshold"),
            *fields.at_least(self, 0, "class_weight", "objectness_weight"),
            *fields.at_least(self, 0, "xy_weight", "wh_weight"),
        )
        fields.check(self, rules)

    @property
    def anchors_per_cell(self) -> int:
        return len(self.anchor_sizes[0])

    @property
    def channels_per_anchor(self) -> int:
        """The number of predictions per anchor: x, y, w, h, objectness, classes."""
        return 5 + self.num_classes

    def setup(self) -> None:
        self.backbone = darknet53.Darknet(
            self.backbone_blocks,
            self.backbone_width,
            self.backbone_norm,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.neck = neck.YOLONeck(self.neck_width, dtype=self.dtype)
        biases = [
            prior_bias(
                self.anchors_per_cell,
                self.num_classes,
                self.prior_objects / (608 / stride) ** 2,
                self.prior_probability,
            )
            for stride in STRIDES
        ]
        channels = self.anchors_per_cell * self.channels_per_anchor
        self.head = Head(self.head_width, channels, biases, dtype=self.dtype)

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, self.head(features, train))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N anchors on a canvas (height, width)."""
        return anchors_lib.grid(canvas, STRIDES, self.anchors_per_cell)

    def anchors(self, grid: anchors_lib.Grid) -> jax.Array:
        """The anchors [N, 4] of all levels, xyxy px."""
        return grid.anchors(list(map(anchors_lib.sized_anchors, self.anchor_sizes, STRIDES)))

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to anchors; `maps` is not used.

        `values` has the position in the cell and the log sizes, which are zero where an anchor is
        not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        anchors, strides = self.anchors(grid), grid.stride()

        def one_image(boxes, valid, image_size):
            assigned = assign_lib.assign(
                anchors,
                strides,
                boxes,
                valid,
                self.positive_iou,
                self.negative_iou,
                self.min_positive_iou,
                anchor_valid=grid.inside(image_size),
            )
            xywh = coders.encode_yolo(anchors, boxes[assigned.matched], strides)
            return targets_lib.of_entries(anchors, grid.level(), assigned, {"xywh": xywh})

        return {"main": targets_lib.of_images(one_image, batch)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy for classes, objectness and position, squared error for sizes."""
        targets = self.targets(batch, maps)["main"]
        xy, wh, objectness, logits = self.split(maps.predictions)
        target_xy, target_wh = jnp.split(targets.values["xywh"], 2, axis=-1)  # [B, N, 2]

        positive = targets.status == 1  # [B, N]
        counted = targets.status >= 0
        is_object = positive.astype(jnp.float32)
        one_hot = targets_lib.one_hot(batch.labels, targets, self.num_classes)  # [B, N, C]

        def total(weight, values, mask):
            values = values.reshape(*mask.shape, -1)
            return weight * jnp.where(mask[..., None], values, 0.0).sum()

        bce = cross_entropy.sigmoid_cross_entropy
        terms = {
            "loss/cls": total(self.class_weight, bce(logits, one_hot), positive),
            "loss/objectness": total(self.objectness_weight, bce(objectness, is_object), counted),
            "loss/xy": total(self.xy_weight, bce(xy, target_xy), positive),
            "loss/wh": total(self.wh_weight, jnp.square(wh - target_wh), positive),
        }
        num_images = batch.images.shape[0]
        terms = {name: self.summed_images / num_images * term for name, term in terms.items()}
        return sum(terms.values()), {**terms, "positives": positive.sum() / num_images}

    def split(self, predictions: Sequence[jax.Array]) -> list[jax.Array]:
        """Raw maps -> xy logits [B, N, 2], wh [B, N, 2], objectness [B, N], logits [B, N, C]."""
        rows = anchors_lib.flatten_levels(predictions, self.channels_per_anchor)  # [B, N, 5 + C]
        return [rows[..., :2], rows[..., 2:4], rows[..., 4], rows[..., 5:]]

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The (anchor, class) pairs with the best class scores over all levels."""
        grid = self.grid(canvas)
        anchors, strides = self.anchors(grid), grid.stride()
        xy, wh, objectness, logits = self.split(maps.predictions)
        objectness = nn.sigmoid(objectness)  # [B, N]
        inside = jax.vmap(grid.inside)(image_size)  # [B, N]
        eligible = inside & (objectness >= self.objectness_threshold)
        scores = jnp.where(eligible[..., None], nn.sigmoid(logits), 0.0)  # [B, N, C]
        bounds.note(self, "num_candidates", scores > self.score_threshold)

        def one_image(xy, wh, objectness, scores):
            scores, anchor, label = candidates_lib.best_pairs(scores, self.num_candidates)
            encoded = jnp.concatenate([nn.sigmoid(xy[anchor]), wh[anchor]], axis=-1)
            # The predicted logarithms are unbounded: exp may give 0 or infinity.
            boxes = coders.decode_yolo(anchors[anchor], encoded, strides[anchor])
            found = candidates_lib.above(self.score_threshold, boxes, scores, label)
            # Multiplied only now: the threshold applies to the class score alone.
            return found._replace(scores=scores * objectness[anchor])

        return jax.vmap(one_image)(xy, wh, objectness, scores)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        paths = []
        if self.backbone_norm in ("stored", "frozen"):
            paths.append("batch_stats/backbone/.*")
        if self.backbone_norm == "frozen":
            paths.append("params/backbone/.*norm/.*")
        return tuple(paths)


def prior_bias(anchors: int, num_classes: int, objectness: float, class_score: float) -> Callable:
    """Initialiser of a predictor's bias [A * (5 + C)] that gives these scores at the start."""

    def init(key, shape):
        of_anchor = np.zeros(5 + num_classes, np.float32)
        of_anchor[4] = math.log(objectness / (1 - objectness))
        of_anchor[5:] = math.log(class_score / (1 - class_score))
        return jnp.array(np.tile(of_anchor, anchors))

    return init


MODULE = YOLOv3

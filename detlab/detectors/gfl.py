"""Generalized Focal Loss (GFL, arXiv:2006.04388).

One score says both whether there is an object and how well its box fits, so training and
suppression rank by the same number, and no branch predicts a centerness.  The distances to the four
sides are distributions over 0, 1 .. `max_distance` strides instead of single numbers: they can
express that a side is uncertain, and their means are the box.  Points are assigned as in ATSS.

Reference: mmdetection's `gfl_r50_fpn_1x_coco`, whose values are the defaults.  As in the reference,
both box losses are weighted by the best class score of the point, without gradient, and divided by
the sum of these weights, or by 1 if that is larger: without positives nothing is divided by zero,
and the box losses of an untrained network are small.  A side farther than the distributions reach
is clipped for the distribution loss alone.  Normalisers are sums over the global batch; the
reference sums per GPU.  Points in the padding around an image are ignored.

Expected: COCO val2017 AP 40.2 with experiments/gfl_coco.py (the published figure of the reference).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, types
from detlab.assign import atss
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import dense
from detlab.losses import distribution, quality
from detlab.losses import iou as iou_losses
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first.  K = max_distance + 1."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    distance_logits: tuple  # [B, Hl, Wl, 4 K] left, top, right, bottom: of 0 .. K - 1 strides


class GFL(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

    num_classes: int = 80
    # Backbone and neck.
    depth: int = 50
    style: str = "pytorch"
    backbone_norm: str = "stored"
    frozen_stages: int = 1
    backbone_width: int = 64
    backbone_stages: Sequence[int] | None = None
    neck_width: int = 256
    # Head.
    head_convs: int = 4
    head_width: int = 256
    norm_groups: int = 32
    max_distance: int = 16  # strides; the last number of a distribution
    prior_probability: float = 0.01
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    # Targets: ATSS on one square anchor per point.
    anchor_scale: float = 8.0  # side, strides
    topk: int = 9  # candidates of an object on each level
    # Losses.
    quality_beta: float = 2.0
    box_weight: float = 2.0
    distribution_weight: float = 0.25
    # Prediction.
    candidates_per_level: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.6
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        rules = (
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            fields.of_strides(self, first=8),
            fields.of_norm_groups(self),
            *fields.at_least(self, 1, "max_distance", "topk", "quality_beta"),
            *fields.above(self, 0, "anchor_scale"),
            *fields.at_least(self, 0, "distribution_weight"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        self.neck = fpn.of(self, extra="output")
        bias = layers.prior_bias(self.prior_probability)
        channels = 4 * (self.max_distance + 1)
        self.head = dense.of(
            self,
            cls_outputs={"cls_logits": (self.num_classes, bias)},
            box_outputs={"distance_logits": (channels, nn.initializers.zeros)},
            norm="group",
        )
        self.box_scales = layers.LevelScales()

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        raw = self.head(features, train)
        return Outputs(features, raw["cls_logits"], self.box_scales(raw["distance_logits"]))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N points on a canvas (height, width), at the top left of their cells."""
        return anchors_lib.grid(canvas, self.strides)

    def distance_logits(self, maps: Outputs) -> jax.Array:
        """The distributions of all points: [B, N, 4, K]."""
        logits = anchors_lib.flatten_levels(maps.distance_logits, 4 * (self.max_distance + 1))
        return logits.reshape(*logits.shape[:2], 4, -1)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to points by ATSS; `maps` is not used.

        `values` has the boxes of the objects, px, which are zero where a point is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        anchors = grid.squares(self.anchor_scale)  # [N, 4], centred on the points

        def one_image(boxes, valid, image_size):
            inside = grid.inside(image_size)
            assigned = atss.assign(
                anchors, grid.slices(), boxes, valid, self.topk, anchor_valid=inside
            )
            values = {"gt_boxes": boxes[assigned.matched]}
            return targets_lib.of_entries(anchors, grid.level(), assigned, values)

        return {"main": targets_lib.of_images(one_image, batch)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Quality focal loss on classes, GIoU and distribution focal loss on boxes (eq. 2, 6)."""
        targets = self.targets(batch, maps)["main"]
        grid = self.grid(batch.images.shape[1:3])
        points = grid.points() / grid.stride()[:, None]  # [N, 2] strides
        wanted = targets.values["gt_boxes"] / grid.stride()[:, None]  # [B, N, 4] strides
        cls_logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        distance_logits = self.distance_logits(maps)  # [B, N, 4, K]
        pred = coders.decode_ltrb(points, coders.decode_distribution(distance_logits))
        positive = targets.status == 1  # [B, N]
        # At least one per image, as in the reference: empty images must not divide by zero.
        normaliser = jnp.maximum(positive.sum(1), 1).sum().astype(jnp.float32)

        overlap = lax.stop_gradient(boxes_lib.iou(pred, wanted))[..., None]  # [B, N, 1]
        qualities = overlap * targets_lib.one_hot(batch.labels, targets, self.num_classes)
        cls = quality.quality_focal(cls_logits, qualities, self.quality_beta)
        cls = jnp.where(targets.status[..., None] >= 0, cls, 0.0).sum() / normaliser

        score = lax.stop_gradient(nn.sigmoid(cls_logits.max(-1)))
        weight = jnp.where(positive, score, 0.0)  # [B, N]
        total = jnp.maximum(weight.sum(), 1.0)
        box = (weight * iou_losses.giou_loss(pred, wanted)).sum() / total
        sides = coders.encode_ltrb(points, wanted, max_distance=self.max_distance)
        spread = distribution.distribution_focal(distance_logits, sides).mean(-1)  # [B, N]
        spread = (weight * spread).sum() / total
        terms = {
            "loss/cls": cls,
            "loss/box": self.box_weight * box,
            "loss/distribution": self.distribution_weight * spread,
        }
        positives = positive.sum() / batch.images.shape[0]
        metrics = {**terms, "positives": positives, "normaliser": normaliser}
        return sum(terms.values()), metrics

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (point, class) pairs of each level, with the means of the distributions."""
        grid = self.grid(canvas)
        points, stride = grid.points(), grid.stride()[:, None]
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))

        def one_image(scores, distance_logits, size):
            scores, point, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            distances = coders.decode_distribution(distance_logits[point]) * stride[point]
            boxes = coders.decode_ltrb(points[point], distances, max_size=size)
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(scores, self.distance_logits(maps), image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = GFL

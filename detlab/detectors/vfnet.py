"""VarifocalNet: An IoU-aware Dense Object Detector (VFNet, arXiv:2008.13367).

One score says both whether there is an object and how well its box fits: the varifocal loss trains
it towards the overlap of the predicted box and makes only the negatives light.  Boxes are predicted
in two rounds.  Nine points of the first box, a star around the cell's own point, are where
deformable convolutions sample the features of the second round and of the classes.

Reference: mmdetection's `vfnet_r50_fpn_1x_coco`, whose values are the defaults.  As in the
reference, each distance of the first round is exp(s_i x) times the largest distance of the level,
the box loss of a round is weighted by its own overlap, without gradient, and a positive without
any overlap has quality 1e-6, so that it is no negative.  With `use_atss` off, objects are assigned
as in FCOS, by the limits of the levels, to points at the centres of their cells.  Normalisers are
sums over the global batch; the reference sums per GPU.  Points in the padding around an image are
ignored; the reference treats them as background.

Expected: COCO val2017 AP 41.6 with experiments/vfnet_coco.py (the published figure of the
reference).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, types
from detlab.assign import atss
from detlab.assign import points as points_lib
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import vfnet as head_lib
from detlab.losses import iou as iou_losses
from detlab.losses import quality
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first.  Distances are left, top, right, bottom, px."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    init_distances: tuple  # [B, Hl, Wl, 4] >= 0
    refine_distances: tuple  # the same


class VFNet(nn.Module):
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
    head_convs: int = 3
    head_width: int = 256
    norm_groups: int = 32
    offset_gradient: float = 0.1  # factor on gradients that reach boxes as sampling positions
    prior_probability: float = 0.01
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    # Distances, px, at which one level ends and the next begins.  They are the units of the first
    # distances, and without ATSS the limits of the targets; the last level has twice the last one.
    level_limits: Sequence[float] = (64.0, 128.0, 256.0, 512.0)
    # Targets: ATSS on one square anchor per point, or the limits above.
    use_atss: bool = True
    anchor_scale: float = 8.0  # side, strides
    topk: int = 9  # candidates of an object on each level
    # Losses.
    varifocal_alpha: float = 0.75
    varifocal_gamma: float = 2.0
    init_weight: float = 1.5
    refine_weight: float = 2.0
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
            fields.of_strides(self, first=8, least_levels=2),
            fields.of_norm_groups(self),
            fields.of_level_limits(self),
            *fields.fractions(self, "offset_gradient"),
            *fields.above(self, 0, "anchor_scale"),
            *fields.at_least(self, 1, "topk"),
            *fields.at_least(self, 0, "varifocal_alpha", "varifocal_gamma"),
            *fields.at_least(self, 0, "init_weight", "refine_weight"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        self.neck = fpn.of(self, extra="output_relu")
        self.head = head_lib.VFNetHead(
            self.num_classes,
            self.strides,
            units=(*self.level_limits, 2 * self.level_limits[-1]),
            num_convs=self.head_convs,
            width=self.head_width,
            norm_groups=self.norm_groups,
            offset_gradient=self.offset_gradient,
            prior_probability=self.prior_probability,
            dtype=self.dtype,
        )

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, **self.head(features, train))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N points on a canvas (height, width)."""
        return anchors_lib.grid(canvas, self.strides)

    def points(self, grid: anchors_lib.Grid) -> jax.Array:
        """The points [N, 2] of all levels, px: with ATSS the centres of its anchors."""
        return grid.points(offset=0.0 if self.use_atss else 0.5)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to points; `maps` is not used.

        `values` has the distances, px, which are zero where a point is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        points, level = self.points(grid), grid.level()
        half = (self.anchor_scale if self.use_atss else 1.0) / 2 * grid.stride()[:, None]
        squares = jnp.concatenate([points - half, points + half], axis=-1)  # [N, 4]
        limits = jnp.array((0, *self.level_limits, jnp.inf), jnp.float32)

        def one_image(boxes, valid, image_size):
            inside = grid.inside(image_size)
            if self.use_atss:
                assigned = atss.assign(
                    squares, grid.slices(), boxes, valid, self.topk, anchor_valid=inside
                )
            else:
                assigned = points_lib.assign(
                    points, limits[level], limits[level + 1], boxes, valid, point_valid=inside
                )
            values = {"distances": coders.encode_ltrb(points, boxes[assigned.matched])}
            return targets_lib.of_entries(squares, level, assigned, values)

        return {"main": targets_lib.of_images(one_image, batch)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Varifocal loss on classes, GIoU loss on the boxes of both rounds (section 4.6)."""
        targets = self.targets(batch, maps)["main"]
        positive = targets.status == 1  # [B, N]
        normaliser = jnp.maximum(positive.sum(), 1).astype(jnp.float32)

        def boxes(distances):
            """Boxes relative to the point; their overlap is that of the absolute boxes."""
            return coders.decode_ltrb(jnp.zeros(2), jnp.where(positive[..., None], distances, 1.0))

        def of_round(raw):
            """The loss of one round of boxes, and their overlap [B, N]."""
            pred = boxes(anchors_lib.flatten_levels(raw, 4))
            wanted = boxes(targets.values["distances"])
            overlap = jnp.maximum(lax.stop_gradient(boxes_lib.iou(pred, wanted)), boxes_lib.EPS)
            weight = jnp.where(positive, overlap, 0.0)
            total = (weight * iou_losses.giou_loss(pred, wanted)).sum()
            return total / jnp.maximum(weight.sum(), 1.0), weight

        init, _ = of_round(maps.init_distances)
        refine, overlap = of_round(maps.refine_distances)

        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        one_hot = targets_lib.one_hot(batch.labels, targets, self.num_classes)  # [B, N, C]
        cls = quality.varifocal(
            logits, overlap[..., None] * one_hot, self.varifocal_alpha, self.varifocal_gamma
        )
        cls = jnp.where(targets.status[..., None] >= 0, cls, 0.0).sum() / normaliser
        terms = {
            "loss/cls": cls,
            "loss/init": self.init_weight * init,
            "loss/refine": self.refine_weight * refine,
        }
        positives = positive.sum() / batch.images.shape[0]
        return sum(terms.values()), {**terms, "positives": positives, "normaliser": normaliser}

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (point, class) pairs of each level, with the boxes of the second round."""
        grid = self.grid(canvas)
        points = self.points(grid)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        distances = anchors_lib.flatten_levels(maps.refine_distances, 4)  # [B, N, 4]

        def one_image(scores, distances, size):
            scores, point, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes = coders.decode_ltrb(points[point], distances[point], max_size=size)
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(scores, distances, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = VFNet

"""RepPoints V2: Verification Meets Regression for Object Detection (arXiv:2007.08508).

RepPoints regresses boxes; two tasks verify them.  One finds corners in a class-agnostic heatmap,
as CornerNet does, the other tells which cells are foreground of which class.  Both share a
convolution on top of the points' tower, and help in three ways: by what they teach the shared
features, by their features and maps, which points and classes are predicted from, and in
prediction, where the corners of boxes move to peaks of the heatmap.

Reference: `reppoints_v2_r50_fpn_1x_coco` of https://github.com/Scalsol/RepPointsV2, whose values
are the defaults.  With `box_loss` "giou" and weights of 1 and 2 it is `..._giou_1x_coco`.  The
first two points of a set are the corners of its box, so the second round is assigned by ATSS to
boxes that may have swapped corners, and then overlap with nothing.  As in the reference, all
objects have corners and foreground on all levels, and P4 to P7 alone are moved, by the heatmaps of
P3 and P4.  Normalisers count over the global batch, in the reference per GPU, at least one of each
image for points and corners.

Three things differ.  Padding around an image takes no part in the losses, in the reference it is
background.  Cells of foreground are counted as at least one, so a batch without objects has a
finite loss.  Boxes that end with swapped corners are dropped, unless `keep_swapped` is set.

Expected: COCO val2017 AP 40.9 with experiments/reppoints_v2_coco.py, and with its variants 41.1
(`giou`) and 43.9 (`giou_2x`): the published figures of the reference.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import atss, verification
from detlab.assign import points as points_lib
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import reppoints_v2 as head_lib
from detlab.losses import focal, regression
from detlab.losses import heatmap as heatmap_losses
from detlab.losses import iou as iou_losses
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import corner_refine
from detlab.ops import nms as nms_lib

KINDS = tuple(head_lib.CORNERS)  # top_left, bottom_right: the order of the corner maps


class Outputs(NamedTuple):
    """One map per pyramid level, finest first.

    Points are relative to the cell's point, in strides of the level; the first two of a set are
    the top left and the bottom right corner of its box.
    """

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    init_points: tuple  # [B, Hl, Wl, 2 T] y, x pairs
    refine_points: tuple  # the same
    corner_logits: tuple  # [B, Hl, Wl, 2] top left, bottom right
    corner_offsets: tuple  # [B, Hl, Wl, 4] x, y of each from the cell's point, in strides
    semantic_logits: tuple  # [B, Hl, Wl, C]


class RepPointsV2(nn.Module):
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
    norm_groups: int = 32  # of neck and head
    # Head.
    head_convs: int = 3
    shared_convs: int = 1  # of the verification tasks, on top of the points' tower
    head_width: int = 256
    pool_width: int = 64
    point_width: int = 256  # of the convolutions that predict points and that sample at them
    num_points: int = 9
    offset_gradient: float = 0.1  # factor on gradients that reach points as sampling positions
    prior_probability: float = 0.01
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    base_scale: float = 4.0  # strides, the unit of the smooth L1 of boxes
    # Targets: the nearest point on the level of the object's size for the first round, ATSS for
    # the second, and the overlap within which a corner has heat around it.
    point_scale: float = 4.0  # px of an object that belongs to the level of stride 1
    points_per_object: int = 1
    topk: int = 9  # candidates of an object on each level
    min_overlap: float = 0.7
    # Losses.
    focal_alpha: float = 0.25  # of classes and foreground
    focal_gamma: float = 2.0
    box_loss: str = "smooth_l1"  # or giou
    smooth_l1_beta: float = 0.11
    init_weight: float = 0.5
    refine_weight: float = 1.0
    heat_weight: float = 0.25
    offset_beta: float = 1 / 9
    offset_weight: float = 1.0
    semantic_weight: float = 0.1
    # Prediction.
    candidates_per_level: int = 1000
    score_threshold: float = 0.05
    keep_swapped: bool = False  # detect boxes whose corners are swapped, as the reference does
    nms_iou: float = 0.6
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        widths = self.neck_width, self.head_width, self.pool_width
        grouped = self.norm_groups >= 1 and not any(x % self.norm_groups for x in widths)
        of_all = "neck_width, head_width and pool_width, {}, {} and {}".format(*widths)
        rules = (
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            fields.of_strides(self, first=8),
            *fields.at_least(self, 1, "head_convs", "shared_convs", "pool_width", "point_width"),
            ("norm_groups", grouped, f"a divisor of {of_all}"),
            fields.one_of(self, "num_points", (side * side for side in (3, 5, 7, 9))),
            *fields.fractions(self, "offset_gradient"),
            *fields.above(self, 0, "base_scale", "point_scale", "smooth_l1_beta", "offset_beta"),
            *fields.at_least(self, 1, "points_per_object", "topk"),
            *fields.between_0_and_1(self, "min_overlap"),
            fields.one_of(self, "box_loss", ("smooth_l1", "giou")),
            *fields.at_least(self, 0, "init_weight", "refine_weight", "heat_weight"),
            *fields.at_least(self, 0, "offset_weight", "semantic_weight"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        common = dict(norm_groups=self.norm_groups, dtype=self.dtype)
        self.neck = fpn.FPN(self.neck_width, num_levels=len(self.strides), norm="group", **common)
        self.head = head_lib.RepPointsV2Head(
            self.num_classes,
            num_points=self.num_points,
            num_convs=self.head_convs,
            shared_convs=self.shared_convs,
            width=self.head_width,
            pool_width=self.pool_width,
            point_width=self.point_width,
            prior_probability=self.prior_probability,
            offset_gradient=self.offset_gradient,
            **common,
        )

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, **self.head(features, train))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N points on a canvas (height, width), at the top left of their cells."""
        return anchors_lib.grid(canvas, self.strides)

    def boxes(self, grid: anchors_lib.Grid, raw: tuple) -> jax.Array:
        """Boxes of all points from raw points of every level: [B, N, 4] px, not clipped.

        Nothing keeps the first corner above and to the left of the second.
        """
        points = anchors_lib.flatten_levels(raw, 2 * self.num_points)
        corners = points[..., jnp.array([1, 0, 3, 2])]  # y, x pairs -> xyxy
        return jnp.tile(grid.points(), 2) + grid.stride()[:, None] * corners

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Targets of both rounds, and of verification.

        The second round is assigned to the boxes of the first; `values` has the boxes of the
        objects, px, which are zero where a point is not positive.  Verification has one entry per
        object; its values are maps of all N points, of which heat and foreground are meaningful
        everywhere and offsets at the peaks, where the heat is 1.
        """
        grid = self.grid(batch.images.shape[1:3])
        points, level = grid.points(), grid.level()
        squares = grid.squares(self.base_scale)

        def one_image(boxes, valid, image_size, init_boxes, labels):
            inside = grid.inside(image_size)
            init = points_lib.assign_nearest(
                points,
                level,
                self.strides,
                boxes,
                valid,
                scale=self.point_scale,
                num_positive=self.points_per_object,
                point_valid=inside,
            )
            refine = atss.assign(
                init_boxes, grid.slices(), boxes, valid, self.topk, anchor_valid=inside
            )
            values = verification.targets(
                grid, boxes, labels, valid, image_size, self.num_classes, self.min_overlap
            )
            slots = jnp.arange(len(valid), dtype=jnp.int32)
            status = jnp.where(valid, 1, -1)
            found = {
                name: targets_lib.of_entries(
                    start, level, assigned, {"boxes": boxes[assigned.matched]}
                )
                for name, start, assigned in (
                    ("init", squares, init),
                    ("refine", init_boxes, refine),
                )
            }
            verified = types.Targets(boxes, jnp.zeros_like(slots), status, slots, values)
            return {**found, "verification": verified}

        init_boxes = self.boxes(grid, maps.init_points)
        return targets_lib.of_images(one_image, batch, init_boxes, jnp.asarray(batch.labels))

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses of classes and of the boxes of both rounds, and of verification."""
        targets = self.targets(batch, maps)
        grid = self.grid(batch.images.shape[1:3])
        refine = targets["refine"]
        counts = {
            name: targets_lib.at_least_one_each(targets[name].status == 1)
            for name in ("init", "refine")
        }

        one_hot = targets_lib.one_hot(batch.labels, refine, self.num_classes)  # [B, N, C]
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)
        cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
        cls = jnp.where(refine.status[..., None] >= 0, cls, 0.0).sum() / counts["refine"]

        unit = self.base_scale * grid.stride()[:, None]  # [N, 1]

        def box_loss(name, points):
            positive = targets[name].status == 1  # [B, N]
            pred, wanted = self.boxes(grid, points) / unit, targets[name].values["boxes"] / unit
            if self.box_loss == "giou":
                terms = iou_losses.giou_loss(pred, wanted)
            else:
                terms = regression.smooth_l1(pred, wanted, self.smooth_l1_beta).sum(-1)
            return jnp.where(positive, terms, 0.0).sum() / counts[name]

        inside = jax.vmap(grid.inside)(batch.image_size)  # [B, N]
        values = targets["verification"].values
        terms = {
            "loss/cls": cls,
            "loss/init": self.init_weight * box_loss("init", maps.init_points),
            "loss/refine": self.refine_weight * box_loss("refine", maps.refine_points),
            **self.corner_losses(maps, values, inside),
            "loss/semantic": self.semantic_weight
            * self.semantic_loss(maps, values["foreground"], inside),
        }
        metrics = {
            **terms,
            "positives": (refine.status == 1).sum() / batch.images.shape[0],
            "normaliser": counts["refine"],
        }
        return sum(terms.values()), metrics

    def corner_losses(self, maps: Outputs, values: dict, inside: jax.Array) -> dict[str, jax.Array]:
        """Focal loss of the heatmaps and smooth L1 of the offsets, means of both kinds."""
        scores = nn.sigmoid(anchors_lib.flatten_levels(maps.corner_logits, 2))  # [B, N, 2]
        offsets = anchors_lib.flatten_levels(maps.corner_offsets, 4)  # [B, N, 4]
        terms = {"loss/heat": 0.0, "loss/offset": 0.0}
        for i, kind in enumerate(KINDS):
            heat, offset = values[f"{kind}_heat"], values[f"{kind}_offset"]
            is_peak = heat == 1
            count = targets_lib.at_least_one_each(is_peak)
            misses = heatmap_losses.gaussian_focal(scores[..., i], heat)
            misses = jnp.where(inside, misses, 0.0).sum() / count
            terms["loss/heat"] += self.heat_weight * misses / len(KINDS)
            misses = regression.smooth_l1(
                offsets[..., 2 * i : 2 * i + 2], offset, self.offset_beta
            ).sum(-1)
            misses = jnp.where(is_peak, misses, 0.0).sum() / count
            terms["loss/offset"] += self.offset_weight * misses / len(KINDS)
        return terms

    def semantic_loss(self, maps: Outputs, weight: jax.Array, inside: jax.Array) -> jax.Array:
        """Focal loss: the weighted mean of the foreground, and the background per foreground."""
        logits = anchors_lib.flatten_levels(maps.semantic_logits, self.num_classes)
        is_foreground = weight > 0  # [B, N, C]
        terms = focal.sigmoid_focal(logits, is_foreground, self.focal_alpha, self.focal_gamma)
        total = weight.sum()
        positive = (weight * terms).sum() / jnp.where(total > 0, total, 1.0)
        is_background = inside[..., None] & ~is_foreground
        negative = jnp.where(is_background, terms, 0.0).sum()
        return positive + negative / jnp.maximum(is_foreground.sum(), 1)

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (point, class) pairs of each level, with boxes of joint inference."""
        grid = self.grid(canvas)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        boxes = self.boxes(grid, maps.refine_points)  # [B, N, 4]

        def one_image(scores, boxes, heat, offsets, size):
            boxes = boxes_lib.clip(boxes, size[0], size[1])
            boxes = corner_refine.refine(grid, boxes, heat, offsets)
            boxes = boxes_lib.clip(boxes, size[0], size[1])
            scores, point, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            found = candidates_lib.above(self.score_threshold, boxes[point], scores, label)
            if self.keep_swapped:
                found = found._replace(valid=scores > self.score_threshold)
            return found

        heat = tuple(map(nn.sigmoid, maps.corner_logits))
        return jax.vmap(one_image)(scores, boxes, heat, maps.corner_offsets, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = RepPointsV2

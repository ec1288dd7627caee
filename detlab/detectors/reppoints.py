"""RepPoints: Point Set Representation for Object Detection (arXiv:1904.11490).

There are no anchors.  Every cell of a feature pyramid predicts a set of points that represents a
box, in two rounds.  The first round predicts their offsets from the cell's own point.  Deformable
convolutions then sample the features at these points: one for the second round, which moves the
points again, and one for the classes.

Reference: mmdetection's `reppoints-moment_r50_fpn-gn_head-gn_1x_coco`, whose values are the
defaults.  Fields select its other forms: `norm` "none" for the plain one; `transform` "minmax" and
"partial_minmax"; `use_grid_points` with "minmax" for the comparison with boxes, in which each round
regresses a box and the points are a grid in it (`reppoints-bbox_r50-center_fpn-gn_head-gn-grid`);
and `init_assigner` "max_iou" if the first round of that form is assigned by overlap, as anchors are
(`reppoints-bbox_r50_fpn-gn_head-gn-grid`).

As in the reference, the best box of an object is positive in the second round whatever its overlap.
Unlike in the reference, log ratios of sizes are bounded in the form with grid points
(`coders.decode_deltas`).  The normalisers count positives in the global batch; the reference counts
per GPU.

Expected: COCO val2017 AP 38.1 with experiments/reppoints_coco.py, and with its variants 37.0
(`plain`), 36.4 (`bbox_grid`) and 37.4 (`bbox_grid_center`): the published figures of the reference.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import max_iou
from detlab.assign import points as points_lib
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import reppoints as head_lib
from detlab.losses import focal, regression
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib

INIT_ASSIGNERS = ("point", "max_iou")


class Outputs(NamedTuple):
    """One map per pyramid level, finest first.

    Points and boxes are relative to the cell's point, in strides of the level.
    """

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    init_points: tuple  # [B, Hl, Wl, 2 T] y, x pairs
    refine_points: tuple  # the same
    init_boxes: tuple  # [B, Hl, Wl, 4] xyxy
    refine_boxes: tuple  # the same


class RepPoints(nn.Module):
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
    norm: str = "group"  # of neck and head: group or none
    norm_groups: int = 32
    # Head.
    head_convs: int = 3
    head_width: int = 256
    point_width: int = 256  # of the convolutions that predict points and that sample at them
    num_points: int = 9
    transform: str = "moment"  # from points to a box: moment, minmax or partial_minmax
    use_grid_points: bool = False  # each round predicts a box, and its points are a grid in it
    offset_gradient: float = 0.1  # factor on gradients that reach points as sampling positions
    prior_probability: float = 0.01
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    # Side, in strides, of the box at a point: grid points start in this box, max_iou uses it in the
    # first round, and the side is the unit of both box losses.
    base_scale: float = 4.0
    # Targets of the first round: by the nearest point on the level of the object's size (section
    # 3.3), or by overlap.
    init_assigner: str = "point"
    point_scale: float = 4.0  # px of an object that belongs to the level of stride 1
    points_per_object: int = 1
    positive_iou: float = 0.5  # of the second round, and of the first with max_iou
    negative_iou: float = 0.4
    # Losses.
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.11
    init_weight: float = 0.5
    refine_weight: float = 1.0
    # Prediction.
    candidates_per_level: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        grouped = self.norm == "none" or (
            self.norm_groups >= 1
            and self.neck_width % self.norm_groups == 0
            and self.head_width % self.norm_groups == 0
        )
        both = f"neck_width, {self.neck_width}, and head_width, {self.head_width}"
        minmax = not self.use_grid_points or self.transform == "minmax"
        rules = (
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            fields.of_strides(self, first=8),
            ("norm", self.norm in ("group", "none"), "group or none"),
            ("norm_groups", grouped, f"a divisor of {both}"),
            *fields.at_least(self, 1, "point_width", "points_per_object"),
            fields.one_of(self, "num_points", (side * side for side in (3, 5, 7, 9))),
            fields.one_of(self, "transform", coders.POINT_TRANSFORMS),
            ("transform", minmax, "minmax when use_grid_points is set"),
            *fields.fractions(self, "offset_gradient"),
            ("init_assigner", self.init_assigner in INIT_ASSIGNERS, " or ".join(INIT_ASSIGNERS)),
            *fields.above(self, 0, "base_scale", "point_scale", "smooth_l1_beta"),
            *fields.at_least(self, 0, "init_weight", "refine_weight"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        common = dict(norm=self.norm, norm_groups=self.norm_groups, dtype=self.dtype)
        self.neck = fpn.FPN(self.neck_width, num_levels=len(self.strides), **common)
        self.head = head_lib.RepPointsHead(
            self.num_classes,
            num_points=self.num_points,
            num_convs=self.head_convs,
            width=self.head_width,
            point_width=self.point_width,
            transform=self.transform,
            use_grid_points=self.use_grid_points,
            base_scale=self.base_scale,
            offset_gradient=self.offset_gradient,
            prior_probability=self.prior_probability,
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
        """Boxes of all points from raw boxes of every level: [B, N, 4] px, not clipped."""
        stride = grid.stride()[:, None]  # [N, 1]
        return jnp.tile(grid.points(), 2) + stride * anchors_lib.flatten_levels(raw, 4)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Targets of both rounds (section 3.3); the classes use those of the second.

        The second round is assigned by the overlap of the boxes from the first round.  `values` has
        the boxes of the objects, px, which are zero where a point is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        points, level = grid.points(), grid.level()
        half = self.base_scale / 2 * grid.stride()[:, None]  # [N, 1]
        squares = jnp.concatenate([points - half, points + half], axis=-1)  # [N, 4]

        def one_image(boxes, valid, image_size, init_boxes):
            inside = grid.inside(image_size)
            by_overlap = functools.partial(
                max_iou.assign,
                gt_boxes=boxes,
                gt_valid=valid,
                pos_iou=self.positive_iou,
                neg_iou=self.negative_iou,
                anchor_valid=inside,
            )
            if self.init_assigner == "max_iou":
                init = by_overlap(squares)
            else:
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
            rounds = {"init": (squares, init), "refine": (init_boxes, by_overlap(init_boxes))}
            return {
                name: targets_lib.of_entries(
                    start, level, assigned, {"boxes": boxes[assigned.matched]}
                )
                for name, (start, assigned) in rounds.items()
            }

        return targets_lib.of_images(one_image, batch, self.boxes(grid, maps.init_boxes))

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss on classes, smooth L1 on the boxes of both rounds (section 3.3)."""
        targets = self.targets(batch, maps)
        grid = self.grid(batch.images.shape[1:3])
        unit = self.base_scale * grid.stride()[:, None]  # [N, 1]
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        normalisers = {
            name: targets_lib.at_least_one_each(x.status == 1) for name, x in targets.items()
        }

        refine = targets["refine"]
        one_hot = targets_lib.one_hot(batch.labels, refine, self.num_classes)  # [B, N, C]
        cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
        cls = jnp.where(refine.status[..., None] >= 0, cls, 0.0).sum() / normalisers["refine"]

        def box_loss(name, raw):
            positive = targets[name].status == 1  # [B, N]
            pred, wanted = self.boxes(grid, raw) / unit, targets[name].values["boxes"] / unit
            terms = regression.smooth_l1(pred, wanted, self.smooth_l1_beta)
            return jnp.where(positive[..., None], terms, 0.0).sum() / normalisers[name]

        init = self.init_weight * box_loss("init", maps.init_boxes)
        refined = self.refine_weight * box_loss("refine", maps.refine_boxes)
        metrics = {
            "loss/cls": cls,
            "loss/init": init,
            "loss/refine": refined,
            "positives": (refine.status == 1).sum() / batch.images.shape[0],
            "normaliser": normalisers["refine"],
        }
        return cls + init + refined, metrics

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (point, class) pairs of each level, with the boxes of the second round."""
        grid = self.grid(canvas)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        boxes = self.boxes(grid, maps.refine_boxes)  # [B, N, 4]

        def one_image(scores, boxes, size):
            scores, point, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes = boxes_lib.clip(boxes[point], size[0], size[1])
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(scores, boxes, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = RepPoints

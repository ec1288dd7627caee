"""RetinaNet: Focal Loss for Dense Object Detection (arXiv:1708.02002).

Every cell of a feature pyramid has nine anchors.  Each anchor is classified independently, and the
focal loss keeps the thousands of easy background anchors from overwhelming the few objects.

Reference: mmdetection's `retinanet_r50_fpn`.  As in the reference, and unlike the paper, the box
loss is L1 on the deltas (paper: smooth L1), P7 is computed from P6 without a ReLU between them, and
the best anchor of an object is positive whatever its IoU.  The normaliser is the number of
positives in the global batch; the reference counts per GPU.

Expected: COCO val2017 AP 36.5 with experiments/retinanet_coco.py (the published figure of the
reference); 0.63 on the shapes with experiments/retinanet_shapes.py, seed 0; 0.56 on BCCD with
experiments/retinanet_bccd.py, seed 0.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import max_iou
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import dense
from detlab.losses import focal, regression
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, A * C]
    box_deltas: tuple  # [B, Hl, Wl, A * 4]


class Examples(NamedTuple):
    """What the loss terms compare, for every anchor."""

    cls_logits: jax.Array  # [B, N, C]
    box_deltas: jax.Array  # [B, N, 4]
    matched: jax.Array  # [B, N] int32 slot of the object
    one_hot: jax.Array  # [B, N, C] zero where not positive
    delta_targets: jax.Array  # [B, N, 4] zero where not positive
    counted: jax.Array  # [B, N] bool: positive or negative, not ignored
    positive: jax.Array  # [B, N] bool


class RetinaNet(nn.Module):
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
    prior_probability: float = 0.01  # pi of section 4.1
    # Anchors: side octave_base_scale * stride, times 2^(0, 1/3, 2/3) (section 4).
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    octave_base_scale: float = 4.0
    scales_per_octave: int = 3
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    delta_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    # Targets and losses.
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_weight: float = 1.0
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
        rules = (
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            fields.of_strides(self, first=8),
            *fields.above(self, 0, "octave_base_scale"),
            *fields.at_least(self, 1, "scales_per_octave"),
        )
        fields.check(self, rules)

    @property
    def anchors_per_cell(self) -> int:
        return self.scales_per_octave * len(self.aspect_ratios)

    def setup(self) -> None:
        self.backbone, self.neck = resnet.of(self), fpn.of(self, extra="input")
        self.head = dense.of(
            self,
            cls_outputs={
                "cls_logits": (
                    self.anchors_per_cell * self.num_classes,
                    layers.prior_bias(self.prior_probability),
                )
            },
            box_outputs={"box_deltas": (self.anchors_per_cell * 4, nn.initializers.zeros)},
        )

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, **self.head(features, train))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N anchors on a canvas (height, width)."""
        return anchors_lib.grid(canvas, self.strides, self.anchors_per_cell)

    def anchors(self, grid: anchors_lib.Grid) -> jax.Array:
        """The anchors [N, 4] of all levels, xyxy px."""
        return grid.octave_anchors(
            self.octave_base_scale, self.scales_per_octave, self.aspect_ratios
        )

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to anchors (section 4, "Anchors"); `maps` is not used.

        `values` has the deltas, which are zero where an anchor is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        assign = functools.partial(
            max_iou.assign, pos_iou=self.positive_iou, neg_iou=self.negative_iou
        )
        found = targets_lib.of_deltas(batch, grid, self.anchors(grid), assign, self.delta_stds)
        return {"main": found}

    def examples(self, batch: types.Batch, maps: Outputs) -> Examples:
        """The predictions and the targets of every anchor."""
        targets = self.targets(batch, maps)["main"]
        return Examples(
            cls_logits=anchors_lib.flatten_levels(maps.cls_logits, self.num_classes),
            box_deltas=anchors_lib.flatten_levels(maps.box_deltas, 4),
            matched=targets.matched,
            one_hot=targets_lib.one_hot(batch.labels, targets, self.num_classes),
            delta_targets=targets.values["deltas"],
            counted=targets.status >= 0,
            positive=targets.status == 1,
        )

    def box_terms(self, found: Examples) -> jax.Array:
        """The losses of the deltas, [B, N, 4]: L1."""
        return regression.l1(found.box_deltas, found.delta_targets)

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss (eq. 5) on classes plus `box_terms`, divided by the number of positives."""
        found = self.examples(batch, maps)
        # At least one per image, as in the reference: empty images must not divide by zero.
        normaliser = jnp.maximum(found.positive.sum(1), 1).sum().astype(jnp.float32)
        cls = focal.sigmoid_focal(
            found.cls_logits, found.one_hot, self.focal_alpha, self.focal_gamma
        )
        cls = jnp.where(found.counted[..., None], cls, 0.0).sum() / normaliser
        box = jnp.where(found.positive[..., None], self.box_terms(found), 0.0)
        box = self.box_weight * box.sum() / normaliser
        terms = {"loss/cls": cls, "loss/box": box}
        positives = found.positive.sum() / batch.images.shape[0]
        return cls + box, {**terms, "positives": positives, "normaliser": normaliser}

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (anchor, class) pairs of each level (section 4, "Inference")."""
        grid = self.grid(canvas)
        anchors = self.anchors(grid)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        deltas = anchors_lib.flatten_levels(maps.box_deltas, 4)  # [B, N, 4]

        def one_image(scores, deltas, size):
            scores, anchor, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes = coders.decode_deltas(
                anchors[anchor], deltas[anchor], stds=self.delta_stds, max_size=size
            )
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(scores, deltas, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = RetinaNet

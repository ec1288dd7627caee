"""ATSS: Bridging the Gap via Adaptive Training Sample Selection (arXiv:1912.02424).

The paper shows that what separates anchor-based from anchor-free detectors is which anchors are
positive.  It takes RetinaNet with one square anchor per cell and lets each object choose: of the
anchors nearest to its centre, those whose IoU is above the mean plus the standard deviation.

Reference: mmdetection's `atss_r50_fpn_1x_coco`, whose values are the defaults.  Head and losses are
those of the improved FCOS: group norms, a factor per level, GIoU of the boxes weighted by
centerness.  As in the reference, class scores are compared with the threshold before they are
multiplied by the centerness.  The normaliser is the number of positives in the global batch; the
reference counts per GPU.  Anchors in the padding around an image are ignored.

Expected: COCO val2017 AP 39.4 with experiments/atss_coco.py (the published figure of the
reference); 0.607 on the shapes with experiments/atss_shapes.py, seed 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import atss
from detlab.assign import points as points_lib
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import dense
from detlab.losses import cross_entropy, focal
from detlab.losses import iou as iou_losses
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    box_deltas: tuple  # [B, Hl, Wl, 4]
    centerness: tuple  # [B, Hl, Wl, 1] logits


class Sums(NamedTuple):
    """The loss terms, summed over the global batch, and what divides them."""

    cls: jax.Array  # [] focal losses
    box: jax.Array  # [] box losses times their weights
    quality: jax.Array  # [] cross entropies of the last map
    weight: jax.Array  # [] the weights of the boxes
    positives: jax.Array  # [B] float32


class ATSS(nn.Module):
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
    prior_probability: float = 0.01
    # Anchors: one square per cell.
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    anchor_scale: float = 8.0  # side, strides
    delta_stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2)
    # Targets and losses.
    topk: int = 9  # candidates of an object on each level: k of algorithm 1
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_weight: float = 2.0
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
            *fields.above(self, 0, "anchor_scale"),
            *fields.at_least(self, 1, "topk"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        self.neck = fpn.of(self, extra="output")
        zeros = nn.initializers.zeros
        self.head = dense.of(
            self,
            {"cls_logits": (self.num_classes, layers.prior_bias(self.prior_probability))},
            {"box_deltas": (4, zeros), "centerness": (1, zeros)},
            norm="group",
        )
        self.box_scales = layers.LevelScales()

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        maps = self.head(features, train)
        deltas = self.box_scales(maps["box_deltas"])
        return Outputs(features, maps["cls_logits"], deltas, maps["centerness"])

    def anchors(self, canvas: tuple[int, int]) -> tuple[anchors_lib.Grid, jax.Array]:
        """The grid of a canvas (height, width) and its anchors [N, 4], xyxy px.

        Each anchor is centred on the top left corner of its cell.
        """
        grid = anchors_lib.grid(canvas, self.strides)
        return grid, grid.squares(self.anchor_scale)

    def boxes(self, anchors: jax.Array, maps: Outputs) -> jax.Array:
        """The predicted boxes [B, N, 4] of all anchors, xyxy px, not clipped to the image."""
        deltas = anchors_lib.flatten_levels(maps.box_deltas, 4)
        return coders.decode_deltas(anchors, deltas, stds=self.delta_stds)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to anchors by adaptive sample selection (section 4); `maps` is not used.

        `values` has the object's box and the centerness of the anchor's centre in it; both are zero
        where an anchor is not positive.
        """
        grid, anchors = self.anchors(batch.images.shape[1:3])
        centers = boxes_lib.xyxy_to_cxcywh(anchors)[:, :2]

        def one_image(boxes, valid, image_size):
            inside = grid.inside(image_size)
            assigned = atss.assign(
                anchors, grid.slices(), boxes, valid, self.topk, anchor_valid=inside
            )
            own = boxes[assigned.matched]  # [N, 4]
            centerness = points_lib.centerness(coders.encode_ltrb(centers, own))
            values = {"gt_boxes": own, "centerness": centerness}
            return targets_lib.of_entries(anchors, grid.level(), assigned, values)

        return {"main": targets_lib.of_images(one_image, batch)}

    def sums(self, batch: types.Batch, maps: Outputs, quality: str) -> Sums:
        """The loss terms before they are normalised.

        Args:
          quality: the key of the targets' values that the last map predicts and that weights boxes.
        """
        targets = self.targets(batch, maps)["main"]
        positive = targets.status == 1  # [B, N]

        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        one_hot = targets_lib.one_hot(batch.labels, targets, self.num_classes)
        cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)

        weight = targets.values[quality]  # [B, N], zero where not positive
        box = iou_losses.giou_loss(self.boxes(targets.boxes, maps), targets.values["gt_boxes"])

        last = anchors_lib.flatten_levels(maps.centerness, 1)[..., 0]  # [B, N]
        last = cross_entropy.sigmoid_cross_entropy(last, weight)
        return Sums(
            cls=jnp.where(targets.status[..., None] >= 0, cls, 0.0).sum(),
            box=(weight * box).sum(),
            quality=jnp.where(positive, last, 0.0).sum(),
            weight=weight.sum(),
            positives=positive.sum(1).astype(jnp.float32),
        )

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss on classes, GIoU on decoded boxes, cross entropy on centerness."""
        found = self.sums(batch, maps, "centerness")
        # At least one per image, as in the reference: empty images must not divide by zero.
        normaliser = jnp.maximum(found.positives, 1).sum()
        terms = {
            "loss/cls": found.cls / normaliser,
            "loss/box": self.box_weight * found.box / jnp.maximum(found.weight, 1e-6),
            "loss/centerness": found.quality / normaliser,
        }
        metrics = {"positives": found.positives.mean(), "normaliser": normaliser}
        return sum(terms.values()), {**terms, **metrics}

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (anchor, class) pairs of each level by class score, scaled by centerness."""
        grid, anchors = self.anchors(canvas)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        centerness = nn.sigmoid(anchors_lib.flatten_levels(maps.centerness, 1)[..., 0])  # [B, N]

        def one_image(scores, boxes, centerness, size):
            scores, anchor, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes = boxes_lib.clip(boxes[anchor], *size)
            found = candidates_lib.above(self.score_threshold, boxes, scores, label)
            return found._replace(scores=scores * centerness[anchor])

        return jax.vmap(one_image)(scores, self.boxes(anchors, maps), centerness, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = ATSS

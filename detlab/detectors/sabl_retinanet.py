"""RetinaNet with Side-Aware Boundary Localization (arXiv:1912.04260).

Each of the four sides of a box is localised on its own, in two steps.  The neighbourhood of a
square is divided into buckets along both axes.  The network estimates in which bucket a side lies,
and then its distance to the middle of that bucket.  How sure it is of the buckets rectifies the
class score.

Reference: mmdetection's `sabl-retinanet_r50_fpn_1x_coco`, whose values are the defaults.  `norm`
"group" is its form with group norms in the head, `sabl-retinanet_r50-gn_fpn_1x_coco`.  As in the
reference, the score of a box is compared with the threshold before it is rectified, and boxes are
clipped to one px less than the image.  The normaliser is the number of positives in the global
batch; the reference counts per GPU.

Expected: COCO val2017 AP 37.7 with experiments/sabl_retinanet_coco.py and 38.8 with its variant
`gn` (the published figures of the reference).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import max_iou
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import dense, sabl
from detlab.losses import buckets as bucket_losses
from detlab.losses import focal
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first; S buckets of each of four sides."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    bucket_logits: tuple  # [B, Hl, Wl, 4 * S]
    bucket_offsets: tuple  # [B, Hl, Wl, 4 * S] from the side to the bucket, in bucket sizes


class SABLRetinaNet(nn.Module):
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
    norm: str = "none"  # of the head: group or none
    norm_groups: int = 32
    prior_probability: float = 0.01
    # Squares of side octave_base_scale * stride, and the anchors of RetinaNet, whose overlaps count
    # when objects are assigned to squares.
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    octave_base_scale: float = 4.0
    scales_per_octave: int = 3
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    # Buckets along the width and the height of a square that is enlarged by bucket_scale.
    num_buckets: int = 14
    bucket_scale: float = 3.0
    # Targets and losses.
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 1 / 9
    bucket_weight: float = 1.5
    offset_weight: float = 1.5
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
            ("norm", self.norm in ("group", "none"), "group or none"),
            fields.of_norm_groups(self),
            *fields.above(self, 0, "octave_base_scale", "bucket_scale", "smooth_l1_beta"),
            *fields.at_least(self, 1, "scales_per_octave"),
            *fields.at_least(self, 3, "num_buckets"),  # so that a side has a second one
            *fields.at_least(self, 0, "bucket_weight", "offset_weight"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone, self.neck = resnet.of(self), fpn.of(self, extra="input")
        prior = layers.prior_bias(self.prior_probability)
        self.head = dense.of(
            self,
            cls_outputs={"cls_logits": (self.num_classes, prior)},
            box_outputs=sabl.outputs(self.num_buckets),
            norm=self.norm,
        )

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, **self.head(features, train))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N squares on a canvas (height, width)."""
        return anchors_lib.grid(canvas, self.strides)

    def predicted(self, maps: Outputs) -> tuple[jax.Array, jax.Array]:
        """The logits and offsets of all buckets, [B, N, 4, S] each."""
        levels = maps.bucket_logits, maps.bucket_offsets
        channels = 4 * sabl.buckets_per_side(self.num_buckets)
        return tuple(sabl.by_side(anchors_lib.flatten_levels(x, channels)) for x in levels)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to squares by the best overlap of the anchors there; no use of `maps`.

        `values` has the four arrays of `coders.Buckets`, zero where a square is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        squares = grid.squares(self.octave_base_scale)
        ious = self.positive_iou, self.negative_iou
        sizes = self.octave_base_scale, self.scales_per_octave, self.aspect_ratios
        usual = grid.octave_anchors(*sizes).reshape(len(squares), -1, 4)  # [N, A, 4]

        def one_image(boxes, valid, image_size):
            assigned = max_iou.assign(
                squares,
                boxes,
                valid,
                *ious,
                anchor_valid=grid.inside(image_size),
                approximations=usual,
            )
            buckets = coders.encode_buckets(
                squares, boxes[assigned.matched], self.num_buckets, self.bucket_scale
            )
            return targets_lib.of_entries(squares, grid.level(), assigned, buckets._asdict())

        return {"main": targets_lib.of_images(one_image, batch)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss on classes, cross entropy on buckets, smooth L1 on offsets."""
        targets = self.targets(batch, maps)["main"]
        counted, positive = targets.status >= 0, targets.status == 1  # [B, N]
        # At least one per image, as in the reference: empty images must not divide by zero.
        normaliser = jnp.maximum(positive.sum(1), 1).sum().astype(jnp.float32)
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        labels = targets_lib.one_hot(batch.labels, targets, self.num_classes)
        cls = focal.sigmoid_focal(logits, labels, self.focal_alpha, self.focal_gamma)
        bucket, offset = bucket_losses.bucket_losses(
            *self.predicted(maps), coders.Buckets(**targets.values), self.smooth_l1_beta
        )
        # Means over the buckets of four sides, and over the two of each side with an offset.
        buckets = 4 * sabl.buckets_per_side(self.num_buckets)
        terms = {
            "loss/cls": jnp.where(counted[..., None], cls, 0.0).sum() / normaliser,
            "loss/bucket": self.bucket_weight * bucket.sum() / (normaliser * buckets),
            "loss/offset": self.offset_weight * offset.sum() / (normaliser * 8),
        }
        counts = {"positives": positive.sum() / len(batch.images), "normaliser": normaliser}
        return sum(terms.values()), {**terms, **counts}

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (square, class) pairs of each level, rectified by how sure the buckets are."""
        grid = self.grid(canvas)
        squares = grid.squares(self.octave_base_scale)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))

        def one_image(scores, logits, offsets, size):
            scores, square, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes, confidence = coders.decode_buckets(
                squares[square],
                logits[square],
                offsets[square],
                self.num_buckets,
                self.bucket_scale,
                max_size=size,
            )
            found = candidates_lib.above(self.score_threshold, boxes, scores, label)
            return found._replace(scores=scores * confidence)

        return jax.vmap(one_image)(scores, *self.predicted(maps), image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = SABLRetinaNet

"""FCOS: Fully Convolutional One-Stage Object Detection (arXiv:1904.01355).

There are no anchors.  Every cell of a feature pyramid makes a prediction for the point at its
centre: the class, the distances to the four sides of the object, and the centerness, which says how
near the point is to the centre of the object and multiplies the class score.

Reference: mmdetection's `fcos_r50-caffe_fpn_gn-head_1x_coco`, whose values are the defaults.  Its
successor `..._gn-head-center-normbbox-centeronreg-giou` (improvements by the authors,
arXiv:2006.09214) sets `center_radius` 1.5, `distances_in_strides`, `centerness_on_box`, `box_loss`
"giou", `conv_bias`, `nms_iou` 0.6, and the pixel mean (123.675, 116.28, 103.53).

As in the reference, and unlike the paper, the box loss is weighted by the centerness, and class
scores are compared with the threshold before they are multiplied by the centerness.  The normaliser
is the number of positives in the global batch; the reference counts per GPU.  Points in the padding
around an image are ignored; the reference treats them as background.

Expected: COCO val2017 AP 36.6 with experiments/fcos_coco.py and 38.7 with its variant `improved`
(the published figures of the reference).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, layers, types
from detlab.assign import points as points_lib
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import dense
from detlab.losses import cross_entropy, focal
from detlab.losses import iou as iou_losses
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    box_distances: tuple  # [B, Hl, Wl, 4] left, top, right, bottom, >= 0, px or strides
    centerness: tuple  # [B, Hl, Wl, 1] logits


class FCOS(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

    num_classes: int = 80
    # Backbone and neck.
    depth: int = 50
    style: str = "caffe"
    backbone_norm: str = "frozen"
    frozen_stages: int = 1
    backbone_width: int = 64
    backbone_stages: Sequence[int] | None = None
    neck_width: int = 256
    # Head.
    head_convs: int = 4
    head_width: int = 256
    norm_groups: int = 32
    conv_bias: bool = False  # tower convolutions have a bias in addition to group norm
    centerness_on_box: bool = False  # predict centerness from the box tower, not the class tower
    prior_probability: float = 0.01
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    # Distances are relu(s_i x) in strides of the level, not exp(s_i x) in px (section 3.2).
    distances_in_strides: bool = False
    # Targets: distances, px, at which one level ends and the next begins (section 3.2).
    level_limits: Sequence[float] = (64.0, 128.0, 256.0, 512.0)
    center_radius: float = 0.0  # positives lie within this of the centre, strides; 0: no limit
    # Losses.
    box_loss: str = "iou"  # or giou
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    # Prediction.
    candidates_per_level: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (122.7717, 115.9465, 102.9801)
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        rules = (
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            fields.of_strides(self, first=8),
            fields.of_norm_groups(self),
            fields.of_level_limits(self),
            *fields.at_least(self, 0, "center_radius"),
            ("box_loss", self.box_loss in ("iou", "giou"), "iou or giou"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        self.neck = fpn.of(self, extra="output_relu")
        cls_outputs = {"cls_logits": (self.num_classes, layers.prior_bias(self.prior_probability))}
        box_outputs = {"box_distances": (4, nn.initializers.zeros)}
        centerness_tower = box_outputs if self.centerness_on_box else cls_outputs
        centerness_tower["centerness"] = (1, nn.initializers.zeros)
        self.head = dense.of(
            self,
            cls_outputs,
            box_outputs,
            norm="group",
            conv_bias=self.conv_bias,
        )
        self.box_scales = layers.LevelScales()

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        maps = self.head(features, train)
        activation = nn.relu if self.distances_in_strides else jnp.exp
        distances = tuple(map(activation, self.box_scales(maps["box_distances"])))
        return Outputs(features, maps["cls_logits"], distances, maps["centerness"])

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N points on a canvas (height, width), at the centres of their cells."""
        return anchors_lib.grid(canvas, self.strides)

    def distance_unit(self, grid: anchors_lib.Grid) -> jax.Array:
        """The unit of the predicted distances of each point, in px: [N, 1]."""
        stride = grid.stride()[:, None]
        return stride if self.distances_in_strides else jnp.ones_like(stride)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Assigns objects to points (sections 3.1, 3.2); `maps` is not used.

        `values` has the distances, in the unit of the predicted ones, and the centerness; both are
        zero where a point is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        points, level, stride = grid.points(offset=0.5), grid.level(), grid.stride()
        limits = jnp.array((0, *self.level_limits, jnp.inf), jnp.float32)
        half = stride[:, None] / 2
        cells = jnp.concatenate([points - half, points + half], axis=-1)  # [N, 4]

        def one_image(boxes, valid, image_size):
            assigned = points_lib.assign(
                points,
                limits[level],
                limits[level + 1],
                boxes,
                valid,
                center_radius=self.center_radius * stride if self.center_radius else None,
                point_valid=grid.inside(image_size),
            )
            distances = coders.encode_ltrb(points, boxes[assigned.matched])
            values = {
                "distances": distances / self.distance_unit(grid),
                "centerness": points_lib.centerness(distances),
            }
            return targets_lib.of_entries(cells, level, assigned, values)

        return {"main": targets_lib.of_images(one_image, batch)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss on classes, overlap loss on boxes, cross entropy on centerness (eq. 2, 3)."""
        targets = self.targets(batch, maps)["main"]
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        distances = anchors_lib.flatten_levels(maps.box_distances, 4)  # [B, N, 4]
        centerness = anchors_lib.flatten_levels(maps.centerness, 1)[..., 0]  # [B, N]

        positive = targets.status == 1  # [B, N]
        counted = targets.status >= 0
        one_hot = targets_lib.one_hot(batch.labels, targets, self.num_classes)  # [B, N, C]
        normaliser = jnp.maximum(positive.sum(), 1).astype(jnp.float32)

        cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
        cls = jnp.where(counted[..., None], cls, 0.0).sum() / normaliser

        # Boxes relative to the point; their overlap is that of the absolute boxes.
        pred, wanted = (
            coders.decode_ltrb(jnp.zeros(2), jnp.where(positive[..., None], x, 1.0))
            for x in (distances, targets.values["distances"])
        )
        weight = targets.values["centerness"]  # [B, N], zero where not positive
        overlap_loss = iou_losses.giou_loss if self.box_loss == "giou" else iou_losses.iou_loss
        box = (weight * overlap_loss(pred, wanted)).sum() / jnp.maximum(weight.sum(), 1e-6)

        middle = cross_entropy.sigmoid_cross_entropy(centerness, weight)
        middle = jnp.where(positive, middle, 0.0).sum() / normaliser
        terms = {"loss/cls": cls, "loss/box": box, "loss/centerness": middle}
        positives = positive.sum() / batch.images.shape[0]
        return cls + box + middle, {**terms, "positives": positives, "normaliser": normaliser}

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (point, class) pairs of each level by class score; centerness then scales it."""
        grid = self.grid(canvas)
        points, unit = grid.points(offset=0.5), self.distance_unit(grid)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        distances = anchors_lib.flatten_levels(maps.box_distances, 4)  # [B, N, 4]
        centerness = anchors_lib.flatten_levels(maps.centerness, 1)[..., 0]  # [B, N]

        def one_image(scores, distances, centerness, size):
            scores, point, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes = coders.decode_ltrb(points[point], distances[point] * unit[point], max_size=size)
            found = candidates_lib.above(self.score_threshold, boxes, scores, label)
            return found._replace(scores=scores * nn.sigmoid(centerness[point]))

        return jax.vmap(one_image)(scores, distances, centerness, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = FCOS

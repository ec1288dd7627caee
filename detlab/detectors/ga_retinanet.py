"""RetinaNet with guided anchors: Region Proposal by Guided Anchoring (arXiv:1901.03278).

Anchors are not tiled, but predicted.  Every cell predicts how likely the middle of an object is in
it, and the shape of its one anchor.  A deformable convolution adapts the features of the cell to
this shape.  Classes and boxes are then predicted as in RetinaNet, in cells that are likely enough.

Reference: mmdetection's `ga-retinanet_r50_fpn_1x_coco`.  Following the reference, not the paper:
the squares whose sides are scaled have 4 strides (paper: 8); the loss of the shapes has weight 1
(paper: 0.1), and it includes the terms of the centre, which are constant.
Unlike in the reference,

- locations are learned as in the paper.  mmdetection 3.3.0 trains their opposite: its focal loss
  takes the target 1, meant for objects, for the background.  `inverted_locations` does the same.
  Published weights predict with the same threshold either way;
- boxes that clipping leaves without area are dropped.  mmdetection 3.3.0 ignores `min_bbox_size`
  in this head and detects them; `keep_empty_boxes` does the same;
- cells in the padding around an image learn no location;
- the best (cell, class) pairs of a level are candidates, not all classes of the best cells;
- the normalisers count the global batch; the reference counts per GPU.

Expected: COCO val2017 AP 36.9 with experiments/ga_retinanet_coco.py (the published figure of the
reference, whose locations were trained inverted).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, sharding, types
from detlab.assign import guided, max_iou
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import guided_anchor
from detlab.losses import focal, regression
from detlab.losses import iou as iou_losses
from detlab.losses import locations as location_losses
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map per pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, C]
    box_deltas: tuple  # [B, Hl, Wl, 4] from the guided anchors
    location_logits: tuple  # [B, Hl, Wl, 1]
    shapes: tuple  # [B, Hl, Wl, 2] dw, dh from the squares to the guided anchors


class GARetinaNet(nn.Module):
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
    deform_groups: int = 4  # of the feature adaption
    prior_probability: float = 0.01
    # Squares of side octave_base_scale * stride, and the anchors of RetinaNet, which stand for all
    # shapes when objects are assigned to cells.
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    octave_base_scale: float = 4.0
    scales_per_octave: int = 3
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    # Locations: the middle of an object is positive, and the ring around it is ignored.
    center_ratio: float = 0.2  # side of the middle, in sides of the object
    ignore_ratio: float = 0.5  # side of middle and ring together
    inverted_locations: bool = False  # see above
    location_weight: float = 1.0
    # Shapes.
    shape_positive_iou: float = 0.5
    shape_negative_iou: float = 0.4
    shape_min_positive_iou: float = 0.4  # of an object's best cell
    shape_stds: Sequence[float] = (1.0, 1.0)  # of dw and dh
    shape_samples: int = 256  # per image
    shape_positive_fraction: float = 0.5
    bounded_iou_beta: float = 0.2
    shape_weight: float = 1.0
    # Classes and boxes.
    positive_iou: float = 0.5
    negative_iou: float = 0.5
    focal_alpha: float = 0.25  # these two also of the locations
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.04
    delta_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    box_weight: float = 1.0
    # Prediction.
    location_threshold: float = 0.01  # less likely cells predict nothing
    candidates_per_level: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    keep_empty_boxes: bool = False  # see above
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
            *fields.of_guided_anchors(self, "head_width"),
            *fields.above(self, 0, "octave_base_scale", "smooth_l1_beta"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone, self.neck = resnet.of(self), fpn.of(self, extra="input")
        self.head = guided_anchor.of(self)

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Outputs(features, **self.head(features, train))

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N cells on a canvas (height, width)."""
        return anchors_lib.grid(canvas, self.strides)

    def anchors(self, grid: anchors_lib.Grid, maps: Outputs) -> jax.Array:
        """The guided anchors [B, N, 4] of all levels, xyxy px, not clipped to the image."""
        shapes = anchors_lib.flatten_levels(maps.shapes, 2)  # [B, N, 2]
        squares = grid.squares(self.octave_base_scale)
        return guided_anchor.guided_anchors(squares, shapes, self.shape_stds)

    # --------------------------------------------------------------------------------------------
    # Training

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """Targets of the three parts of the head; all of them have one entry per cell.

        `location`: the middles of objects.  `shape`: a sample of the cells in which some usual
        anchor overlaps an object, -1 where not sampled, with the object's box.  `main`: classes
        and boxes, by the overlap of the guided anchors, with the deltas.  All values are zero where
        a cell is not positive.
        """
        rng = self.make_rng("sample")
        # One key per image of the global batch, so results do not depend on the devices.
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(len(batch.images)))
        grid = self.grid(batch.images.shape[1:3])
        ious = self.positive_iou, self.negative_iou

        def one_image(key, boxes, valid, image_size, anchors):
            inside = grid.inside(image_size)
            main = max_iou.assign(anchors, boxes, valid, *ious, anchor_valid=inside)
            deltas = coders.encode_deltas(anchors, boxes[main.matched], stds=self.delta_stds)
            main = targets_lib.of_entries(anchors, grid.level(), main, {"deltas": deltas})
            objects = boxes, valid, image_size
            of_anchors = guided.of_image(self, self.octave_base_scale, grid, key, *objects)
            return {**of_anchors, "main": main}

        rows = batch.boxes, batch.valid, batch.image_size, self.anchors(grid, maps)
        # Without `per_device`, the `top_k` of the sample would gather all images on every device.
        return sharding.per_device(jax.vmap(one_image))(keys, *lax.stop_gradient(rows))

    def location_loss(self, batch: types.Batch, maps: Outputs, targets: types.Targets) -> jax.Array:
        """Focal loss of the locations, divided by the number of all cells / 200."""
        logits = anchors_lib.flatten_levels(maps.location_logits, 1)[..., 0]  # [B, N]
        inside = jax.vmap(self.grid(batch.images.shape[1:3]).inside)(batch.image_size)  # [B, N]
        loss = location_losses.location_focal(
            logits, targets.status, self.focal_alpha, self.focal_gamma, self.inverted_locations
        )
        return self.location_weight * loss.sum() / (inside.sum() / location_losses.CELLS)

    def shape_loss(self, anchors: jax.Array, targets: types.Targets) -> jax.Array:
        """Bounded IoU loss of the guided anchors [B, N, 4], divided by the number of samples."""
        # As in the reference, every image counts at least one positive and one negative.
        counts = [jnp.maximum((targets.status == kind).sum(1), 1).sum() for kind in (0, 1)]
        loss = iou_losses.bounded_iou_loss(anchors, targets.values["boxes"], self.bounded_iou_beta)
        loss = jnp.where(targets.status[..., None] == 1, loss, 0.0)
        return self.shape_weight * loss.sum() / sum(counts)

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of locations and shapes, focal loss on classes, smooth L1 on deltas."""
        found = self.targets(batch, maps)
        targets = found["main"]
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        deltas = anchors_lib.flatten_levels(maps.box_deltas, 4)  # [B, N, 4]
        counted, positive = targets.status >= 0, targets.status == 1  # [B, N]
        # At least one per image, as in the reference: empty images must not divide by zero.
        normaliser = jnp.maximum(positive.sum(1), 1).sum().astype(jnp.float32)

        one_hot = targets_lib.one_hot(batch.labels, targets, self.num_classes)
        cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
        box = regression.smooth_l1(deltas, targets.values["deltas"], self.smooth_l1_beta)
        box = self.box_weight * jnp.where(positive[..., None], box, 0.0).sum() / normaliser
        anchors = self.anchors(self.grid(batch.images.shape[1:3]), maps)
        terms = {
            "loss/location": self.location_loss(batch, maps, found["location"]),
            "loss/shape": self.shape_loss(anchors, found["shape"]),
            "loss/cls": jnp.where(counted[..., None], cls, 0.0).sum() / normaliser,
            "loss/box": box,
        }
        counts = {"positives": positive.sum() / len(batch.images), "normaliser": normaliser}
        return sum(terms.values()), {**terms, **counts}

    # --------------------------------------------------------------------------------------------
    # Prediction

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best (cell, class) pairs of each level, in cells with a likely location."""
        grid = self.grid(canvas)
        anchors = self.anchors(grid, maps)  # [B, N, 4]
        likely = candidates_lib.level_scores(grid, maps.location_logits, image_size)
        scores = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        scores = [
            jnp.where(location >= self.location_threshold, x, 0.0)
            for location, x in zip(likely, scores, strict=True)
        ]
        bounds.note(self, "candidates_per_level", *(x > self.score_threshold for x in scores))
        deltas = anchors_lib.flatten_levels(maps.box_deltas, 4)  # [B, N, 4]

        def one_image(scores, anchors, deltas, size):
            scores, cell, label = candidates_lib.level_pairs(scores, self.candidates_per_level)
            boxes = coders.decode_deltas(
                anchors[cell], deltas[cell], stds=self.delta_stds, max_size=size
            )
            found = candidates_lib.above(self.score_threshold, boxes, scores, label)
            if self.keep_empty_boxes:
                found = found._replace(valid=scores > self.score_threshold)
            return found

        return jax.vmap(one_image)(scores, anchors, deltas, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


MODULE = GARetinaNet

"""Faster R-CNN with guided anchors: Region Proposal by Guided Anchoring (arXiv:1901.03278).

The anchors of the region proposal network (RPN) are not tiled, but predicted: every cell predicts
how likely the middle of an object is in it, and the shape of its one anchor.  A deformable
convolution adapts the features of the cell to this shape, and the RPN scores and refines the anchor
from the adapted features.  Such proposals are better, so the box head gets fewer of them and is
trained with a higher threshold of the IoU (section 3.6).

Reference: mmdetection's `ga-faster-rcnn_r50_fpn_1x_coco`.  As in the reference, all cells propose
in training, and likely ones in prediction.  Following the reference, not the paper: the loss of the
shapes has weight 1 (paper: 0.1), and it includes the terms of the centre, which are constant; the
deltas of guided anchors and shapes have small divisors.
Unlike in the reference,

- locations are learned as in the paper.  mmdetection 3.3.0 trains their opposite: its focal loss
  takes the target 1, meant for objects, for the background.  `inverted_locations` does the same.
  Published weights predict with the same threshold either way;
- cells in the padding around an image learn nothing and propose nothing;
- the normalisers count the global batch; the reference counts per GPU.

`sampling_ratio` and `num_candidates` are explained in faster_rcnn.py.

Expected: COCO val2017 AP 39.6 with experiments/ga_rcnn_coco.py (the published figure of the
reference, whose locations were trained inverted).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import fields, layers, types
from detlab.assign import guided
from detlab.assign import rois as rois_lib
from detlab.assign import targets as targets_lib
from detlab.detectors import faster_rcnn
from detlab.heads import guided_anchor
from detlab.losses import iou as iou_losses
from detlab.losses import locations as location_losses
from detlab.ops import anchors as anchors_lib
from detlab.ops import coders
from detlab.ops import proposals as proposals_lib


class Maps(NamedTuple):
    """What depends on the images alone, finest level first."""

    features: tuple  # [B, Hl, Wl, D]
    rpn_logits: tuple  # [B, Hl, Wl, 1]
    rpn_deltas: tuple  # [B, Hl, Wl, 4] from the guided anchors
    location_logits: tuple  # [B, Hl, Wl, 1]
    shapes: tuple  # [B, Hl, Wl, 2] dw, dh from the squares to the guided anchors


class Outputs(NamedTuple):
    """The maps, and in prediction the P proposals and the box head's outputs for them."""

    features: tuple
    rpn_logits: tuple
    rpn_deltas: tuple
    location_logits: tuple
    shapes: tuple
    proposals: proposals_lib.Proposals  # [B, P, ...]
    cls_logits: jax.Array  # [B, P, C + 1], background last
    box_deltas: jax.Array  # [B, P, C * 4]


class GARCNN(faster_rcnn.FasterRCNN):
    """Faster R-CNN whose RPN predicts its anchors; the pyramid and the box head are the same.

    Squares have the side anchor_scale * stride.  The usual anchors of `scales_per_octave` and
    `aspect_ratios`, of that size and more, stand for all shapes when objects are assigned to cells.
    """

    scales_per_octave: int = 3
    deform_groups: int = 4  # of the feature adaption
    prior_probability: float = 0.01  # of a location
    # Locations: the middle of an object is positive, and the ring around it is ignored.
    center_ratio: float = 0.2  # side of the middle, in sides of the object
    ignore_ratio: float = 0.5  # side of middle and ring together
    inverted_locations: bool = False  # see above
    focal_alpha: float = 0.25  # these two of the locations
    focal_gamma: float = 2.0
    location_weight: float = 1.0
    location_threshold: float = 0.01  # in prediction less likely cells propose nothing
    # Shapes.
    shape_positive_iou: float = 0.7
    shape_negative_iou: float = 0.3
    shape_min_positive_iou: float = 0.3  # of an object's best cell
    shape_stds: Sequence[float] = (0.14, 0.14)  # of dw and dh
    shape_samples: int = 256  # per image
    shape_positive_fraction: float = 0.5
    bounded_iou_beta: float = 0.2
    shape_weight: float = 1.0
    # Scores and boxes of the guided anchors.
    rpn_delta_stds: Sequence[float] = (0.07, 0.07, 0.11, 0.11)
    rpn_box_beta: float = 1.0
    train_proposals: int = 300
    proposals: int = 300
    # Box head and prediction.
    positive_iou: float = 0.6
    box_samples: int = 256
    delta_stds: Sequence[float] = (0.05, 0.05, 0.1, 0.1)
    score_threshold: float = 0.001

    def check(self) -> None:
        """Checks the fields of Faster R-CNN and those of the guided anchors."""
        super().check()
        rules = (
            *fields.of_guided_anchors(self, "rpn_width"),
            ("rpn_delta_stds", fields.positive(self.rpn_delta_stds, 4), "four numbers above 0"),
            ("rpn_crossing", self.rpn_crossing, "True: guided anchors may cross the border"),
        )
        fields.check(self, rules)

    def make_rpn(self) -> nn.Module:
        """The head of the region proposal network, which `setup` names `rpn`."""
        return guided_anchor.GuidedRPNHead(
            self.rpn_width, self.deform_groups, self.prior_probability, self.dtype
        )

    def maps(self, images: jax.Array, train: bool) -> Maps:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> the pyramid and the RPN's outputs."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        found = self.rpn(features, train)
        logits, deltas = found.pop("cls_logits"), found.pop("box_deltas")
        return Maps(features, logits, deltas, **found)

    # --------------------------------------------------------------------------------------------
    # First stage

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N cells on a canvas (height, width)."""
        return anchors_lib.grid(canvas, self.strides)

    def anchors(self, grid: anchors_lib.Grid) -> jax.Array:
        """The squares [N, 4] of all levels, xyxy px."""
        return grid.squares(self.anchor_scale)

    def guided_anchors(self, grid: anchors_lib.Grid, maps: Maps) -> jax.Array:
        """The guided anchors [B, N, 4] of all levels, xyxy px, not clipped to the image."""
        shapes = anchors_lib.flatten_levels(maps.shapes, 2)  # [B, N, 2]
        return guided_anchor.guided_anchors(self.anchors(grid), shapes, self.shape_stds)

    def propose(
        self, maps: Maps, image_size: jax.Array, canvas: tuple[int, int], train: bool
    ) -> proposals_lib.Proposals:
        """Proposals [B, P, ...] of a batch, without a gradient."""
        grid = self.grid(canvas)
        levels = grid.slices()

        def one_image(logits, deltas, locations, anchors, size):
            proposing = grid.inside(size)
            if not train:
                proposing &= nn.sigmoid(locations[:, 0]) >= self.location_threshold
            flat = logits[:, 0], deltas, anchors, proposing  # [N, ...]
            return proposals_lib.propose(
                *([values[level] for level in levels] for values in flat),
                size,
                per_level=self.train_proposals_per_level if train else self.proposals_per_level,
                num_proposals=self.train_proposals if train else self.proposals,
                nms_iou=self.proposal_nms_iou,
                delta_stds=self.rpn_delta_stds,
            )

        raw = (
            anchors_lib.flatten_levels(maps.rpn_logits, 1),
            anchors_lib.flatten_levels(maps.rpn_deltas, 4),
            anchors_lib.flatten_levels(maps.location_logits, 1),
            self.guided_anchors(grid, maps),
        )
        return faster_rcnn.on_images(one_image)(*lax.stop_gradient(raw), image_size)

    def rpn_targets(
        self, keys: jax.Array, batch: types.Batch, maps: Maps
    ) -> dict[str, types.Targets]:
        """Targets of the three parts of the RPN, one entry per cell; keys [B], one per image.

        `location`: the middles of objects.  `shape`: a sample of the cells in which some usual
        anchor overlaps an object, with the object's box.  `rpn`: a sample of the guided anchors, by
        their own overlap, with the deltas.  The samples are -1 where not sampled.
        """
        grid = self.grid(batch.images.shape[1:3])

        def one_image(key, boxes, valid, size, anchors):
            of_rpn, of_shapes = jax.random.split(key)
            assigned = rois_lib.sample_anchors(
                of_rpn,
                anchors,
                grid.inside(size),
                boxes,
                valid,
                ious=(self.rpn_positive_iou, self.rpn_negative_iou, self.rpn_min_positive_iou),
                num=self.rpn_samples,
                positive_fraction=self.rpn_positive_fraction,
                negatives_per_positive=self.rpn_negatives_per_positive or None,
            )
            matched = boxes[assigned.matched]
            deltas = coders.encode_deltas(anchors, matched, stds=self.rpn_delta_stds)
            rpn = targets_lib.of_entries(anchors, grid.level(), assigned, {"deltas": deltas})
            objects = boxes, valid, size
            return {
                **guided.of_image(self, self.anchor_scale, grid, of_shapes, *objects),
                "rpn": rpn,
            }

        rows = batch.boxes, batch.valid, batch.image_size, self.guided_anchors(grid, maps)
        return faster_rcnn.on_images(one_image)(keys, *lax.stop_gradient(rows))

    def rpn_loss(
        self, batch: types.Batch, maps: Maps, found: dict[str, types.Targets]
    ) -> dict[str, jax.Array]:
        """The loss terms of the first stage: those of Faster R-CNN, of locations and of shapes."""
        grid = self.grid(batch.images.shape[1:3])
        logits = anchors_lib.flatten_levels(maps.location_logits, 1)[..., 0]  # [B, N]
        status = found["location"].status
        location = location_losses.location_focal(
            logits, status, self.focal_alpha, self.focal_gamma, self.inverted_locations
        )
        cells = jax.vmap(grid.inside)(batch.image_size).sum() / location_losses.CELLS

        status, boxes = found["shape"].status, found["shape"].values["boxes"]
        # As in the reference, every image counts at least one positive and one negative.
        counts = [jnp.maximum((status == kind).sum(1), 1).sum() for kind in (0, 1)]
        anchors = self.guided_anchors(grid, maps)
        shape = iou_losses.bounded_iou_loss(anchors, boxes, self.bounded_iou_beta)  # [B, N, 4]
        shape = jnp.where(status[..., None] == 1, shape, 0.0)
        return {
            **super().rpn_loss(batch, maps, found),
            "loss/location": self.location_weight * location.sum() / cells,
            "loss/shape": self.shape_weight * shape.sum() / sum(counts),
        }

    # --------------------------------------------------------------------------------------------
    # Both stages

    def outputs(self, maps: Maps, image_size: jax.Array, canvas: tuple[int, int]) -> Outputs:
        """What prediction computes from the maps: proposals and the box head's outputs for them."""
        found = self.propose(maps, image_size, canvas, train=False)
        ratio = self.predict_sampling_ratio
        features = self.roi_features(maps, found.boxes, found.valid, ratio)
        return Outputs(*maps, found, *self.box_head(features))


MODULE = GARCNN

"""PAA: Probabilistic Anchor Assignment with IoU Prediction (arXiv:2007.08103).

ATSS decides by the overlap of the anchors which of them are positive.  PAA lets the network decide:
the loss of each anchor around an object says how well it could learn it, and a mixture of two
Gaussians separates the low losses from the high ones.  The third map predicts the IoU of the box
with its object instead of centerness; in prediction, the boxes around a kept one vote.

Reference: mmdetection's `paa_r50_fpn_1x_coco`, whose values are the defaults; the parameters are
those of ATSS.  As in the reference, the first candidates are all anchors of IoU 0.1 (and the best
of each object), at most 9 per level then compete, and nothing is ignored.  The mixtures of all
objects are fitted on the device; the reference fits them one by one with scikit-learn.  Its splits
differ from these where two candidates alone in a Gaussian are equally likely, and rounding chooses.
`num_candidates` bounds the pairs that suppression and voting see; the reference has no bound.
Normalisers count the global batch; the reference's count per GPU.

Expected: COCO val2017 AP 40.4 with experiments/paa_coco.py (the published figure of the
reference; 40.2 without score voting).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, types
from detlab.assign import max_iou, paa
from detlab.assign import targets as targets_lib
from detlab.detectors import atss
from detlab.losses import cross_entropy, focal
from detlab.losses import iou as iou_losses
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders, score_voting


class PAA(atss.ATSS):
    """ATSS with another assignment; the map `centerness` holds logits of the predicted IoU."""

    # Targets and losses.  `topk` counts the candidates of an object on each level here too.
    candidate_iou: float = 0.1  # from this IoU on, an anchor is a candidate (section 4.1)
    box_weight: float = 1.3  # of the box loss, and in the score of an anchor
    iou_weight: float = 0.5
    # Prediction.
    candidates_per_level: int = 1000  # anchors, with all their classes
    num_candidates: int = 10000  # (anchor, class) pairs of an image, for suppression and voting
    voting: bool = True
    voting_sigma: float = 0.025

    def check(self) -> None:
        """Checks the fields of ATSS and those that PAA adds."""
        super().check()
        rules = (
            *fields.between_0_and_1(self, "candidate_iou"),
            *fields.at_least(self, 0, "iou_weight"),
            *fields.above(self, 0, "voting_sigma"),
        )
        fields.check(self, rules)

    def targets(self, batch: types.Batch, maps: atss.Outputs) -> dict[str, types.Targets]:
        """Assigns objects to anchors by the losses of their predictions (section 3.1).

        "candidates" has the anchors that overlap an object, and "main" those that learn it.
        `values` has the object's box, and in "main" the IoU of the predicted box with it; they are
        zero where an anchor is not positive.
        """
        grid = self.grid(batch.images.shape[1:3])
        anchors, level = self.anchors(grid), grid.level()
        logits, boxes = self.predictions(anchors, maps)

        def one_image(gt_boxes, valid, image_size, gt_labels, logits, boxes):
            first = max_iou.assign(
                anchors,
                gt_boxes,
                valid,
                pos_iou=self.candidate_iou,
                neg_iou=self.candidate_iou,
                min_pos_iou=0.0,
                anchor_valid=grid.inside(image_size),
            )
            own = gt_boxes[first.matched]  # [N, 4]
            # The loss of each anchor if it learns its object: -log P of the paper's eq. 5.
            one_hot = jax.nn.one_hot(gt_labels[first.matched], self.num_classes)
            cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
            box = self.box_weight * iou_losses.giou_loss(boxes, own)
            assigned = paa.assign(first, cls.sum(-1) + box, grid.slices(), len(gt_boxes), self.topk)
            values = {"gt_boxes": own, "iou": boxes_lib.iou(boxes, own)}
            return {
                "candidates": targets_lib.of_entries(anchors, level, first, {"gt_boxes": own}),
                "main": targets_lib.of_entries(anchors, level, assigned, values),
            }

        return targets_lib.of_images(one_image, batch, batch.labels, logits, boxes)

    def predictions(self, anchors: jax.Array, maps: atss.Outputs) -> tuple[jax.Array, jax.Array]:
        """Class logits [B, N, C] and boxes [B, N, 4] xyxy px, not clipped, of all anchors."""
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)
        deltas = anchors_lib.flatten_levels(maps.box_deltas, 4)
        return logits, coders.decode_deltas(anchors, deltas, stds=self.delta_stds)

    def loss(
        self, batch: types.Batch, maps: atss.Outputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss on classes, GIoU on boxes, cross entropy on the predicted IoU (eq. 8)."""
        targets = self.targets(batch, maps)["main"]
        logits, boxes = self.predictions(targets.boxes, maps)
        iou_logits = anchors_lib.flatten_levels(maps.centerness, 1)[..., 0]  # [B, N]

        positive = targets.status == 1  # [B, N]
        counted = targets.status >= 0
        one_hot = targets_lib.one_hot(batch.labels, targets, self.num_classes)  # [B, N, C]
        count = positive.sum().astype(jnp.float32)
        normaliser = jnp.maximum(count, len(positive))

        cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
        cls = jnp.where(counted[..., None], cls, 0.0).sum() / normaliser

        iou = targets.values["iou"]  # [B, N], zero where not positive
        box = iou * iou_losses.giou_loss(boxes, targets.values["gt_boxes"])
        box = self.box_weight * box.sum() / jnp.maximum(iou.sum(), 1e-6)

        quality = cross_entropy.sigmoid_cross_entropy(iou_logits, iou)
        quality = jnp.where(positive, quality, 0.0).sum() / jnp.maximum(count, 1)
        quality = self.iou_weight * quality
        terms = {"loss/cls": cls, "loss/box": box, "loss/iou": quality}
        positives = count / batch.images.shape[0]
        return cls + box + quality, {**terms, "positives": positives, "normaliser": normaliser}

    def candidates(
        self, maps: atss.Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best pairs, by sqrt(class score * IoU), of the best anchors of each level."""
        grid = self.grid(canvas)
        anchors = self.anchors(grid)
        iou = anchors_lib.flatten_levels(maps.centerness, 1)  # [B, N, 1]
        levels = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        levels = [
            jnp.sqrt(scores * nn.sigmoid(iou[:, part]))
            for scores, part in zip(levels, grid.slices(), strict=True)
        ]
        passing = [scores > self.score_threshold for scores in levels]
        bounds.note(self, "candidates_per_level", *(x.any(-1) for x in passing))
        bounds.note(self, "num_candidates", jnp.concatenate(passing, axis=1))
        _, boxes = self.predictions(anchors, maps)

        def one_image(levels, boxes, size):
            best = [scores.max(-1, keepdims=True) for scores in levels]  # [Nl, 1]
            _, anchor, _ = candidates_lib.level_pairs(best, self.candidates_per_level)
            scores = jnp.concatenate(levels)[anchor]  # [anchors, C]
            scores, row, label = candidates_lib.best_pairs(scores, self.num_candidates)
            boxes = boxes_lib.clip(boxes[anchor[row]], *size)
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(levels, boxes, image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; then all candidates vote (section 3.3)."""
        kept = super().suppress(candidates)
        if not self.voting:
            return kept

        def one_image(kept, candidates):
            return score_voting.vote(kept, candidates, self.voting_sigma)

        return kept._replace(boxes=jax.vmap(one_image)(kept, candidates))


MODULE = PAA

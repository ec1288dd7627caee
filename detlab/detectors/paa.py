"""PAA: Probabilistic Anchor Assignment with IoU Prediction (arXiv:2007.08103).

ATSS decides by the overlap of the anchors which of them are positive.  PAA lets the network decide:
the loss of each anchor around an object says how well it could learn it, and a mixture of two
Gaussians separates the low losses from the high ones.  The third map predicts the IoU of the box
with its object instead of centerness; in prediction, the boxes around a kept one vote.

Reference: mmdetection's `paa_r50_fpn_1x_coco`, whose values are the defaults; the parameters are
those of ATSS.  As in the reference, the first candidates are all anchors of IoU 0.1 (and the best
of each object), at most 9 per level then compete, and nothing is ignored.  The mixtures of all
objects are fitted on the device, the reference's one by one with scikit-learn (`assign/paa.py` says
how often they differ).  `num_candidates` bounds the pairs that suppression and voting see; the
reference has no bound.  Normalisers count the global batch; the reference's count per GPU.  Scores
are square roots, so pictures of the configs show those above 0.5, not 0.3.

Expected: COCO val2017 AP 40.4 with experiments/paa_coco.py (the published figure of the
reference; 40.2 without score voting); 0.608 on the shapes with experiments/paa_shapes.py, seed 0.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import bounds, fields, types
from detlab.assign import max_iou, paa
from detlab.assign import targets as targets_lib
from detlab.detectors import atss
from detlab.losses import focal
from detlab.losses import iou as iou_losses
from detlab.ops import anchors as anchors_lib
from detlab.ops import boxes as boxes_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import score_voting


class PAA(atss.ATSS):
    """ATSS with another assignment; the map `centerness` holds logits of the predicted IoU."""

    # Targets and losses.  `topk` counts the candidates of an object on each level here too.
    candidate_iou: float = 0.1  # from this IoU on, an anchor is a candidate
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
        `values` has the object's box and the IoU of the predicted box with it; both are zero where
        an anchor is not positive.
        """
        grid, anchors = self.anchors(batch.images.shape[1:3])
        logits = anchors_lib.flatten_levels(maps.cls_logits, self.num_classes)  # [B, N, C]
        predicted = batch.labels, logits, self.boxes(anchors, maps)

        def one_image(gt_boxes, valid, image_size, gt_labels, logits, boxes):
            first = max_iou.assign(
                anchors,
                gt_boxes,
                valid,
                pos_iou=self.candidate_iou,
                neg_iou=self.candidate_iou,
                anchor_valid=grid.inside(image_size),
            )
            own = gt_boxes[first.matched]  # [N, 4]
            # The loss of each anchor if it learns its object; section 3.1 scores it exp(-loss).
            one_hot = jax.nn.one_hot(gt_labels[first.matched], self.num_classes)
            cls = focal.sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
            loss = cls.sum(-1) + self.box_weight * iou_losses.giou_loss(boxes, own)
            last = paa.assign(first, loss, grid.slices(), len(gt_boxes), self.topk)
            values = {"gt_boxes": own, "iou": boxes_lib.iou(boxes, own)}
            return {
                "candidates": targets_lib.of_entries(anchors, grid.level(), first, values),
                "main": targets_lib.of_entries(anchors, grid.level(), last, values),
            }

        return targets_lib.of_images(one_image, batch, *predicted)

    def loss(
        self, batch: types.Batch, maps: atss.Outputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss on classes, GIoU on boxes, cross entropy on the predicted IoU."""
        found = self.sums(batch, maps, "iou")
        total = found.positives.sum()
        normaliser = jnp.maximum(total, len(found.positives))
        terms = {
            "loss/cls": found.cls / normaliser,
            "loss/box": self.box_weight * found.box / jnp.maximum(found.weight, 1e-6),
            "loss/iou": self.iou_weight * found.quality / jnp.maximum(total, 1),
        }
        metrics = {"positives": found.positives.mean(), "normaliser": normaliser}
        return sum(terms.values()), {**terms, **metrics}

    def candidates(
        self, maps: atss.Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The best pairs, by sqrt(class score * IoU), of the best anchors of each level."""
        grid, anchors = self.anchors(canvas)
        iou = nn.sigmoid(anchors_lib.flatten_levels(maps.centerness, 1))  # [B, N, 1]
        levels = candidates_lib.level_scores(grid, maps.cls_logits, image_size)
        slices = grid.slices()
        levels = [jnp.sqrt(x * iou[:, part]) for x, part in zip(levels, slices, strict=True)]
        passing = [x > self.score_threshold for x in levels]
        bounds.note(self, "candidates_per_level", *(x.any(-1) for x in passing))
        bounds.note(self, "num_candidates", jnp.concatenate(passing, axis=1))

        def one_image(levels, boxes, size):
            best = [x.max(-1, keepdims=True) for x in levels]  # [Nl, 1]
            _, anchor, _ = candidates_lib.level_pairs(best, self.candidates_per_level)
            scores = jnp.concatenate(levels)[anchor]  # [anchors, C]
            scores, row, label = candidates_lib.best_pairs(scores, self.num_candidates)
            boxes = boxes_lib.clip(boxes[anchor[row]], *size)
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        return jax.vmap(one_image)(levels, self.boxes(anchors, maps), image_size)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; then all candidates vote (section 3.3)."""
        kept = super().suppress(candidates)
        if not self.voting:
            return kept

        def one_image(kept, candidates):
            return score_voting.vote(kept, candidates, self.voting_sigma)

        return kept._replace(boxes=jax.vmap(one_image)(kept, candidates))


MODULE = PAA

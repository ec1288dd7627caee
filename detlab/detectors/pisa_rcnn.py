"""Faster R-CNN with prime sample attention (PISA, arXiv:1904.04821).

RoIs are not equally important: the mean AP depends most on the positives that overlap their object
best, and on the negatives that score best among those around them.  Both kinds are ranked by that
(hierarchical local rank, section 3).  ISR-P and ISR-N move weight of the classification loss to the
first positives and negatives; ISR-N also trains on the first negatives instead of random ones
(section 4.1).  CARL adds a box loss whose factors grow with the score, which teaches the classifier
to score well localized boxes higher (section 4.2).

Reference: mmdetection's `faster-rcnn_r50_fpn_pisa_1x_coco`.  As in the reference, the negatives of
an image are ranked by the score of their best class, whichever it is; those with a score of at most
`rank_score` have no rank and fill up the sample at random; losses of negatives keep their sum in
each image, those of positives in the batch; and the box loss is smooth L1.  Unlike in the
reference, every object is ranked on its own, also in images after the second, and normalisers are
those of the global batch instead of a GPU's.

The scores of all candidates are needed before any is drawn.  RoI features and the large layers of
the box head are computed once, for all candidates; the sample takes its rows of them, and the
backward pass sees these rows alone.

Expected: COCO val2017 AP 38.4 with experiments/pisa_rcnn_coco.py (the published figure of the
reference).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from detlab import fields, types
from detlab.assign import ranked as ranked_lib
from detlab.assign import rois as rois_lib
from detlab.detectors import faster_rcnn
from detlab.heads import box as box_lib
from detlab.losses import cross_entropy, pisa, regression
from detlab.ops import boxes as boxes_lib
from detlab.ops import coders


class RoIs(NamedTuple):
    """Those of `assign.rois`, and the weights of their classification losses."""

    boxes: jax.Array  # [R, 4]
    status: jax.Array  # [R]
    matched: jax.Array  # [R]
    index: jax.Array  # [R]
    weights: jax.Array  # [R] of ISR-N; 1 where positive, 0 in empty slots


class PISARCNN(faster_rcnn.FasterRCNN):
    """Faster R-CNN with ISR-P, ISR-N and CARL; parameters are the same."""

    train_proposals: int = 2000
    proposals_per_level: int = 2000
    proposals: int = 2000
    # Candidates without an object have a rank if their score is above `rank_score`; predicted boxes
    # with at least `rank_iou` belong to one group.
    rank_score: float = 0.05
    rank_iou: float = 0.5
    # Exponent and least value of the factors (section 4: gamma and beta of ISR, k and b of CARL).
    isr_k: float = 2.0
    isr_bias: float = 0.0
    isr_negative_k: float = 0.5
    isr_negative_bias: float = 0.0
    carl_k: float = 1.0
    carl_bias: float = 0.2
    box_beta: float = 1.0  # of the smooth L1 of the box head

    def check(self) -> None:
        """Checks the fields of Faster R-CNN and those of prime sample attention."""
        super().check()
        rules = (
            ("rank_iou", 0 < self.rank_iou <= 1, "above 0 and at most 1"),
            *fields.at_least(self, 0, "isr_k", "isr_negative_k", "carl_k"),
            *fields.fractions(self, "rank_score", "isr_bias", "isr_negative_bias", "carl_bias"),
            *fields.above(self, 0, "box_beta"),
        )
        fields.check(self, rules)

    # --------------------------------------------------------------------------------------------
    # Section 3 and ISR-N: the negatives with the lowest ranks

    def in_training(
        self, batch: types.Batch, maps: faster_rcnn.Maps
    ) -> tuple[dict[str, types.Targets], tuple[jax.Array, jax.Array]]:
        """(targets of both stages, logits and deltas [B, R, ...] of the sampled RoIs)."""
        keys = self.image_keys(len(batch.images), 2)
        proposals = self.propose(maps, batch.image_size, batch.images.shape[1:3], train=True)
        find = functools.partial(rois_lib.candidates, iou=self.positive_iou)
        rows = proposals.boxes, proposals.valid, batch.boxes, batch.valid
        found = faster_rcnn.on_images(find)(*rows)  # [B, N, ...]
        align = functools.partial(self.roi_features, sampling_ratio=self.sampling_ratio)
        features = align(lax.stop_gradient(maps), found.boxes, found.status >= 0)
        logits, deltas, products = lax.stop_gradient(self.box_head.with_products(features))
        rois = self.ranked_sample(keys[:, 1], found, logits, deltas)
        targets = {
            **self.rpn_targets(keys[:, 0], batch, maps),
            "box": self.box_targets(rois, batch),
        }
        take = faster_rcnn.on_images(lambda values, rows: values[rows])
        features, *products = (take(x, rois.index) for x in (features, *products))
        features = align(maps, rois.boxes, rois.status >= 0, known=features)
        logits, deltas, _ = self.box_head.with_products(features, products)
        return lax.stop_gradient(targets), (logits, deltas)

    def ranked_sample(
        self,
        keys: jax.Array,
        found: rois_lib.Candidates,
        logits: jax.Array,
        deltas: jax.Array,
    ) -> RoIs:
        """The RoIs [B, R, ...] that the box head is trained on.

        Args:
          keys: [B], one per image.
          found: the N candidates of each image, [B, N, ...].
          logits, deltas: [B, N, C + 1] and [B, N, C * 4] of the candidates.
        """

        def one_image(key, found, logits, deltas):
            scores = jax.nn.softmax(logits)[:, :-1]  # [N, C]
            score = scores.max(-1)
            own = box_lib.of_label(deltas, scores.argmax(-1))  # [N, 4]
            boxes = coders.decode_deltas(found.boxes, own, stds=self.delta_stds)
            ranked = (found.status == 0) & (score > self.rank_score)
            rank = ranked_lib.ranks_of(boxes, score, ranked, self.rank_iou)
            samples = (self.box_samples, self.box_positive_fraction)
            drawn = ranked_lib.sample(key, found.status, ranked, rank, *samples)
            rois, rows = rois_lib.drawn(found, drawn), drawn.index
            background = jnp.full(len(rows), self.num_classes)
            weights = pisa.isr_negative_weights(
                rank[rows],
                ranked[rows],
                rois.status == 0,
                ranked.sum(),
                cross_entropy.softmax_cross_entropy(logits[rows], background),
                self.isr_negative_k,
                self.isr_negative_bias,
            )
            return RoIs(*rois, jnp.where(drawn.valid, weights, 0.0))

        return faster_rcnn.on_images(one_image)(keys, found, logits, deltas)

    def box_targets(self, rois: RoIs, batch: types.Batch) -> types.Targets:
        """Faster R-CNN's, and the `weights` of the classification losses."""
        found = super().box_targets(rois, batch)
        return found._replace(values={**found.values, "weights": rois.weights})

    # --------------------------------------------------------------------------------------------
    # Section 4: the losses

    def box_loss(
        self, batch: types.Batch, targets: types.Targets, logits: jax.Array, deltas: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Faster R-CNN's with the weights of ISR-P and ISR-N, and the term of CARL."""
        terms, metrics = super().box_loss(batch, targets, logits, deltas)
        positive, normaliser = targets.status == 1, metrics["normaliser"]
        labels = jnp.take_along_axis(batch.labels, targets.matched, axis=1)
        labels = jnp.where(positive, labels, 0)
        own = box_lib.of_label(deltas, labels)  # [B, R, 4]

        # Section 4.1: prime samples first.
        decode = functools.partial(coders.decode_deltas, targets.boxes, stds=self.delta_stds)
        ious = boxes_lib.iou(decode(own), decode(targets.values["deltas"]))
        cls = cross_entropy.softmax_cross_entropy(
            logits, jnp.where(positive, labels, self.num_classes)
        )
        importance = pisa.isr_weights(
            ious, targets.matched, labels, positive, cls, self.isr_k, self.isr_bias
        )
        importance *= targets.values["weights"]
        # Section 4.2: the gradient of the box loss reaches the score of the object's class.
        scores = jnp.take_along_axis(jax.nn.softmax(logits), labels[..., None], axis=-1)[..., 0]
        attention = pisa.carl_weights(scores, positive, self.carl_k, self.carl_bias)
        box = self.delta_loss(own, targets.values["deltas"]).sum(-1)

        terms["loss/cls"] = (importance * cls).sum() / normaliser
        terms["loss/carl"] = (attention * box).sum() / normaliser
        return terms, metrics

    def delta_loss(self, deltas: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each delta of the box head, [B, R, 4]: smooth L1."""
        return regression.smooth_l1(deltas, targets, self.box_beta)

    # --------------------------------------------------------------------------------------------
    # Both stages

    def targets(self, batch: types.Batch, maps: faster_rcnn.Maps) -> dict[str, types.Targets]:
        """Those of Faster R-CNN; `box` also has the `weights` of the classification losses."""
        targets, _ = self.in_training(batch, maps)
        return targets

    def loss(
        self, batch: types.Batch, maps: faster_rcnn.Maps
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of Faster R-CNN with weights, and CARL."""
        targets, outputs = self.in_training(batch, maps)
        box_terms, metrics = self.box_loss(batch, targets["box"], *outputs)
        terms = {**self.rpn_loss(batch, maps, targets), **box_terms}
        return sum(terms.values()), {**terms, **metrics}


MODULE = PISARCNN

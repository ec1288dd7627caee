"""Side-Aware Boundary Localization on Faster and Cascade R-CNN (arXiv:1912.04260).

A box head that regresses four deltas from one vector is imprecise when box and object are far
apart.  SABL localises each side on its own: attention pools the features of an RoI along one axis,
the surroundings of the RoI are divided into buckets along both axes, and the network estimates in
which bucket a side lies and its distance to the middle of that bucket (section 3).  How sure it is
of the buckets rectifies the class score.

Reference: mmdetection's `sabl-faster-rcnn_r50_fpn_1x_coco`, whose values are the defaults.  Its
`sabl-cascade-rcnn_r50_fpn_1x_coco` is the same with three stages, the variant `cascade` of the
experiment.  As in the reference, the score is compared with the threshold before the buckets of the
last stage rectify it, and boxes are clipped to one px less than the image.  What differs from the
references in Faster and Cascade R-CNN is explained in faster_rcnn.py and cascade_rcnn.py.

Expected: COCO val2017 AP 39.9 with experiments/sabl_rcnn_coco.py and 41.6 with its variant
`cascade` (the published figures of the reference).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import fields, types
from detlab.assign import rois as rois_lib
from detlab.assign import sampling
from detlab.assign import targets as targets_lib
from detlab.detectors import cascade_rcnn
from detlab.heads import sabl
from detlab.losses import buckets as bucket_losses
from detlab.ops import coders, roi_align


class SABLRCNN(cascade_rcnn.CascadeRCNN):
    """Cascade R-CNN, by default with one stage, whose box heads localise sides in buckets."""

    # As in Faster R-CNN.
    train_proposals: int = 1000
    rpn_crossing: bool = True
    rpn_box_beta: float = 0.0
    # For each stage: IoU of its positives, how much its RoIs are enlarged, weight of its losses.
    stage_ious: Sequence[float] = (0.5,)
    stage_scales: Sequence[float] = (1.7,)
    stage_weights: Sequence[float] = (1.0,)
    stage_stds: Sequence[Sequence[float]] = ()  # there are no deltas
    box_beta: float = 0.1  # of the smooth L1 of the offsets

    def check(self) -> None:
        """Checks the fields of Faster R-CNN and those of the stages."""
        super(cascade_rcnn.CascadeRCNN, self).check()
        count = len(self.stage_ious)
        scales = (
            "stage_scales",
            fields.positive(self.stage_scales, count),
            f"numbers above 0 of {count} stages, as stage_ious",
        )
        rules = (
            *cascade_rcnn.of_stages(self, scales),
            *fields.at_least(self, 2, "roi_size"),  # so that a side has a second bucket
            ("stage_stds", not self.stage_stds, "left empty: SABL has no deltas"),
            cascade_rcnn.unused(self, "delta_stds", "stage_scales"),
        )
        fields.check(self, rules)

    def make_box_head(self) -> nn.Module | list[nn.Module]:
        """`box_head`, or the head of each stage, `box_head_0` and so on."""
        heads = [
            sabl.BoxHead(self.num_classes, self.box_width, self.neck_width, dtype=self.dtype)
            for _ in self.stage_ious
        ]
        return heads if len(heads) > 1 else heads[0]

    @property
    def num_buckets(self) -> int:
        """Of the width and of the height of an enlarged RoI: two for each cell of its features."""
        return 2 * self.roi_size

    # --------------------------------------------------------------------------------------------
    # One stage

    def stage_outputs(
        self, stage: int, maps: cascade_rcnn.Maps, rois: jax.Array, valid: jax.Array, train: bool
    ) -> tuple:
        """Logits [B, R, C + 1], and logits and offsets of the S buckets of sides, [B, R, 4, S].

        Only positives learn where their sides are, and a sample has its positives in the first
        slots.  So in training the other slots are localised without a gradient; not at all in the
        last stage, whose bucket arrays then have fewer than R rows.
        """
        features = self.stage_features(maps, rois, valid, train)
        last = stage == len(self.stage_ious) - 1
        head = self.box_head if last and stage == 0 else self.box_head[stage]
        logits = head.classify(features)
        count = rois.shape[1]
        if train:
            count = sampling.most_positives(self.box_samples, self.box_positive_fraction, count)
        learned = head.localise(features[:, :count])
        if last or count == rois.shape[1]:
            return logits, *learned
        others = lax.stop_gradient(head.localise(lax.stop_gradient(features[:, count:])))
        return logits, *(jnp.concatenate(x, axis=1) for x in zip(learned, others, strict=True))

    def stage_targets(self, stage: int, rois: rois_lib.RoIs, batch: types.Batch) -> types.Targets:
        """Targets of the sampled RoIs, status -1 in empty slots.

        `values` has the `index` of Faster R-CNN, and the four arrays of `coders.Buckets`, zero
        where a RoI is not positive.
        """
        scale = self.stage_scales[stage]

        def one_image(rois, boxes):
            buckets = coders.encode_buckets(
                rois.boxes, boxes[rois.matched], self.num_buckets, scale
            )
            level = roi_align.levels(rois.boxes, 4, self.roi_scale)
            found = targets_lib.of_entries(rois.boxes, level, rois, buckets._asdict())
            return found._replace(values={**found.values, "index": rois.index})

        return jax.vmap(one_image)(rois, batch.boxes)

    def located(
        self, stage: int, rois: jax.Array, outputs: tuple, image_size: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The RoIs [B, R, 4] with the sides that a stage predicts, and how sure it is [B, R]."""
        _, logits, offsets = outputs

        def one_image(rois, logits, offsets, size):
            return coders.decode_buckets(
                rois, logits, offsets, self.num_buckets, self.stage_scales[stage], max_size=size
            )

        return jax.vmap(one_image)(rois, logits, offsets, image_size)

    def refine(
        self, stage: int, rois: jax.Array, outputs: tuple, image_size: jax.Array
    ) -> jax.Array:
        """The RoIs [B, R, 4] as the stage's outputs correct them, clipped to the image."""
        return self.located(stage, rois, outputs, image_size)[0]

    def box_loss(
        self,
        batch: types.Batch,
        targets: types.Targets,
        logits: jax.Array,
        bucket_logits: jax.Array,
        bucket_offsets: jax.Array,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """(the terms of a stage's classes, buckets and offsets, the other metrics)."""
        terms, metrics = self.cls_loss(batch, targets, logits)
        count = bucket_logits.shape[1]  # of the slots that can be positive
        values = (targets.values[name][:, :count] for name in coders.Buckets._fields)
        bucket, offset = bucket_losses.bucket_losses(
            bucket_logits, bucket_offsets, coders.Buckets(*values), self.box_beta
        )
        # As in the reference, a mean over samples, and over the sides for buckets alone.
        terms["loss/bucket"] = bucket.sum() / (4 * metrics["normaliser"])
        terms["loss/offset"] = offset.sum() / metrics["normaliser"]
        return terms, metrics

    # --------------------------------------------------------------------------------------------
    # All stages

    def confidence(self, outputs: cascade_rcnn.Outputs, image_size: jax.Array) -> jax.Array:
        """Factors [B, P] of the scores: how sure the last stage is of its buckets (section 3.4)."""
        stage = len(self.stage_ious) - 1
        _, confidence = self.located(stage, outputs.rois[-2], outputs.stages[-1], image_size)
        return confidence


MODULE = SABLRCNN

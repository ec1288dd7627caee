"""Cascade R-CNN: Delving into High Quality Object Detection (arXiv:1712.00726).

A box head trained with a low IoU threshold lets through boxes that barely fit; trained with a high
one it has too few positives.  Cascade R-CNN has several box heads in a row.  Each refines the boxes
that the next one sees and is trained on the refined boxes with a higher threshold: better boxes
have enough positives (section 4).

Reference: mmdetection's `cascade-rcnn_r50_fpn_1x_coco`.  As in the reference, and unlike the paper,
later stages weigh less in the loss, and a proposal's class scores are those of the mean of all
stages' logits, each for its own boxes (in the paper all heads score the last boxes).  The RPN
learns only from anchors inside the image.  A stage samples the refined boxes of the stage before
and the objects; objects that were sampled before are not refined.  Normalisers are those of the
global batch, in the reference those of a GPU.  `sampling_ratio` and `num_candidates` are explained
in faster_rcnn.py.

Expected: COCO val2017 AP 40.3 with experiments/cascade_rcnn_coco.py (the published figure of the
reference).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, types
from detlab.assign import rois as rois_lib
from detlab.detectors import faster_rcnn
from detlab.heads import box as box_lib
from detlab.losses import regression
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders
from detlab.ops import proposals as proposals_lib

Maps = faster_rcnn.Maps


class Outputs(NamedTuple):
    """The maps, and in prediction the P proposals and the outputs of every stage for them."""

    features: tuple
    rpn_logits: tuple
    rpn_deltas: tuple
    proposals: proposals_lib.Proposals  # [B, P, ...]
    rois: tuple  # [B, P, 4] boxes before each stage and, last, after all stages
    stages: tuple  # of each stage, the outputs of its head: [B, P, ...]


class CascadeRCNN(faster_rcnn.FasterRCNN):
    """Faster R-CNN with a box head for each stage; the RPN and the pyramid are the same."""

    train_proposals: int = 2000
    rpn_crossing: bool = False
    rpn_box_beta: float = 1 / 9
    # For each stage: IoU of its positives, divisors of its deltas, weight of its losses.
    stage_ious: Sequence[float] = (0.5, 0.6, 0.7)
    stage_stds: Sequence[Sequence[float]] = (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    )
    stage_weights: Sequence[float] = (1.0, 0.5, 0.25)
    box_beta: float = 1.0  # of the smooth L1 of the box heads

    def check(self) -> None:
        """Checks the fields of Faster R-CNN and those of the stages."""
        super().check()
        count = len(self.stage_ious)
        stds = (
            ("stage_stds", len(self.stage_stds) == count, f"of {count} stages, as stage_ious"),
            (
                "stage_stds",
                all(fields.positive(stds, 4) for stds in self.stage_stds),
                "four numbers above 0 for each stage",
            ),
        )
        fields.check(self, (*of_stages(self, *stds), unused(self, "delta_stds", "stage_stds")))

    def make_box_head(self) -> list[nn.Module]:
        """The head of each stage, `box_head_0` and so on."""
        return [
            box_lib.BoxHead(self.num_classes, self.box_width, class_agnostic=True, dtype=self.dtype)
            for _ in self.stage_ious
        ]

    # --------------------------------------------------------------------------------------------
    # One stage

    def stage_outputs(
        self, stage: int, maps: faster_rcnn.Maps, rois: jax.Array, valid: jax.Array, train: bool
    ) -> tuple:
        """Logits [B, R, C + 1] and deltas [B, R, 4] of RoIs [B, R, 4]; valid [B, R]."""
        return self.box_head[stage](self.stage_features(maps, rois, valid, train))

    def stage_features(
        self, maps: faster_rcnn.Maps, rois: jax.Array, valid: jax.Array, train: bool
    ) -> jax.Array:
        """Features [B, R, S, S, D] of RoIs [B, R, 4]; valid [B, R]."""
        ratio = self.sampling_ratio if train else self.predict_sampling_ratio
        return self.roi_features(maps, rois, valid, ratio)

    def stage_targets(self, stage: int, rois: rois_lib.RoIs, batch: types.Batch) -> types.Targets:
        """Targets of the sampled RoIs, status -1 in empty slots."""
        return self.box_targets(rois, batch, self.stage_stds[stage])

    def refine(
        self, stage: int, rois: jax.Array, outputs: tuple, image_size: jax.Array
    ) -> jax.Array:
        """The RoIs [B, R, 4] as the stage's outputs correct them, clipped to the image."""
        _, deltas = outputs

        def one_image(rois, deltas, size):
            return coders.decode_deltas(rois, deltas, stds=self.stage_stds[stage], max_size=size)

        return jax.vmap(one_image)(rois, deltas, image_size)

    def delta_loss(self, deltas: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each delta of a box head, [B, R, 4]: smooth L1."""
        return regression.smooth_l1(deltas, targets, self.box_beta)

    # --------------------------------------------------------------------------------------------
    # All stages

    def in_training(
        self, batch: types.Batch, maps: faster_rcnn.Maps
    ) -> tuple[dict[str, types.Targets], list[tuple[types.Targets, tuple]]]:
        """(targets of the RPN by name, [(targets, outputs) of each stage])."""
        keys = self.image_keys(len(batch.images), 1 + len(self.stage_ious))
        proposals = self.propose(maps, batch.image_size, batch.images.shape[1:3], train=True)
        stages: list[tuple[types.Targets, tuple]] = []
        for stage, iou in enumerate(self.stage_ious):
            if stages:
                proposals = self.refined(proposals, stage - 1, *stages[-1], batch.image_size)
            rois = self.sample(keys[:, 1 + stage], proposals, batch, iou)
            targets = lax.stop_gradient(self.stage_targets(stage, rois, batch))
            counted = targets.status >= 0
            outputs = self.stage_outputs(stage, maps, targets.boxes, counted, train=True)
            stages.append((targets, outputs))
        return lax.stop_gradient(self.rpn_targets(keys[:, 0], batch, maps)), stages

    def refined(
        self,
        proposals: proposals_lib.Proposals,
        stage: int,
        targets: types.Targets,
        outputs: tuple,
        image_size: jax.Array,
    ) -> proposals_lib.Proposals:
        """The proposals of the next stage: the sampled ones, refined, without a gradient.

        They are packed, so that more object slots leave the next draw as it is.
        """
        boxes = self.refine(stage, targets.boxes, lax.stop_gradient(outputs), image_size)
        count = proposals.boxes.shape[1]
        kept = (targets.status >= 0) & (targets.values["index"] < count)  # not the objects

        def one_image(boxes, kept):
            # Of equal values, top_k returns the first ones first.
            filled, order = lax.top_k(kept.astype(jnp.float32), min(count, len(kept)))
            boxes = jnp.where(filled[:, None] > 0, boxes[order], 0.0)
            return proposals_lib.Proposals(boxes, filled, filled > 0)

        return faster_rcnn.on_images(one_image)(boxes, kept)

    def targets(self, batch: types.Batch, maps: faster_rcnn.Maps) -> dict[str, types.Targets]:
        """`rpn`, and `box0`, `box1` and so on of the stages, each like Faster R-CNN's `box`.

        The `index` of a RoI counts the proposals of its stage, which are the sampled proposals of
        the stage before in their order, and then the object slots.
        """
        rpn, stages = self.in_training(batch, maps)
        return {**rpn, **{f"box{i}": targets for i, (targets, _) in enumerate(stages)}}

    def loss(
        self, batch: types.Batch, maps: faster_rcnn.Maps
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of the RPN and of every stage, the latter times the stage's weight."""
        rpn, stages = self.in_training(batch, maps)
        terms, others, normalisers = self.rpn_loss(batch, maps, rpn), {}, []
        for i, (targets, outputs) in enumerate(stages):
            of_stage, metrics = self.box_loss(batch, targets, *outputs)
            normalisers.append(metrics.pop("normaliser"))
            terms |= {f"{name}{i}": self.stage_weights[i] * x for name, x in of_stage.items()}
            others |= {f"{name}{i}": value for name, value in metrics.items()}
        # One number for all stages, which have about as many samples.
        return sum(terms.values()), {**terms, **others, "normaliser": normalisers[0]}

    def outputs(
        self, maps: faster_rcnn.Maps, image_size: jax.Array, canvas: tuple[int, int]
    ) -> Outputs:
        """What prediction computes from the maps: proposals, refined by each stage."""
        found = self.propose(maps, image_size, canvas, train=False)
        rois, stages = [found.boxes], []
        for stage in range(len(self.stage_ious)):
            stages.append(self.stage_outputs(stage, maps, rois[-1], found.valid, train=False))
            rois.append(self.refine(stage, rois[-1], stages[-1], image_size))
        return Outputs(*maps, found, tuple(rois), tuple(stages))

    def scores(self, stages: Sequence[Any]) -> jax.Array:
        """Scores [B, P, C] from the outputs of all stages."""
        logits = sum(logits for logits, *_ in stages) / len(stages)
        return nn.softmax(logits)[..., :-1]

    def confidence(self, outputs: Outputs, image_size: jax.Array) -> jax.Array:
        """Factors [B, P] of the scores above the threshold: 1, as deltas say nothing of theirs."""
        return jnp.ones(outputs.proposals.valid.shape)

    def candidates(
        self, maps: faster_rcnn.Maps, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The (proposal, class) pairs with the best scores, with the boxes of the last stage."""
        outputs = self.outputs(maps, image_size, canvas)
        valid = outputs.proposals.valid[..., None]
        scores = jnp.where(valid, self.scores(outputs.stages), 0.0)
        bounds.note(self, "num_candidates", scores > self.score_threshold)

        def one_image(scores, boxes, confidence):
            scores, roi, label = candidates_lib.best_pairs(scores, self.num_candidates)
            found = candidates_lib.above(self.score_threshold, boxes[roi], scores, label)
            return found._replace(scores=found.scores * confidence[roi])

        return jax.vmap(one_image)(scores, outputs.rois[-1], self.confidence(outputs, image_size))


def of_stages(module: nn.Module, *own: tuple) -> tuple:
    """Rules for the fields of the stages; `own` are those of other box heads."""
    count = len(module.stage_ious)
    fractions = fields.positive(module.stage_ious) and max(module.stage_ious) <= 1
    return (
        ("stage_ious", fractions, "one or more numbers above 0 and at most 1"),
        *own,
        (
            "stage_weights",
            fields.positive(module.stage_weights, count),
            f"numbers above 0 of {count} stages, as stage_ious",
        ),
        *fields.above(module, 0, "box_beta"),
        unused(module, "positive_iou", "stage_ious"),
    )


def unused(module: nn.Module, name: str, instead: str) -> tuple:
    """The rule for a field of a single stage, which `instead` replaces."""
    same = getattr(module, name) == getattr(faster_rcnn.FasterRCNN, name)
    return (name, same, f"left at its default: set {instead} for each stage")


MODULE = CascadeRCNN

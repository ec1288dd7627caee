"""Dynamic R-CNN: High Quality Object Detection via Dynamic Training (arXiv:2004.06002).

In the course of training proposals become better: more of them pass a fixed IoU threshold, and the
deltas that are left to learn become smaller.  Dynamic R-CNN follows them.  The threshold of
positives rises with the IoUs of the proposals (dynamic label assignment, section 4.1), and the
border `beta` of smooth L1 falls with the deltas, so that small errors still count (dynamic smooth
L1, section 4.2).  Both are recorded at every step and renewed after every `update_interval` steps.

Reference: mmdetection's `dynamic-rcnn_r50_fpn_1x_coco`.  As in the reference, the threshold is 0.5
until it is renewed, and objects count among the proposals.  Both figures are those of the global
batch, in the reference those of a GPU.  The reference keeps the records in
Python lists, which a restart loses; here they are the collection `loss_state`, which checkpoints
save and restore.  With gradient accumulation each part of a batch counts as a step.  A step without
positives records no delta.

Expected: COCO val2017 AP 38.9 with experiments/dynamic_rcnn_coco.py (the published figure of the
reference).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from detlab import fields, types
from detlab.assign import rois as rois_lib
from detlab.assign import sampling
from detlab.detectors import faster_rcnn
from detlab.losses import regression
from detlab.ops import proposals as proposals_lib


class Training(NamedTuple):
    """What training adapts, and its records since the last renewal; all zeros at first."""

    iou: jax.Array  # [] from which on a proposal is positive; 0 until it is renewed
    beta: jax.Array  # [] of the smooth L1 of the box head; 0 until it is renewed
    ious: jax.Array  # [update_interval] one for each step; those from `steps` on are older
    deltas: jax.Array  # [update_interval] the same; -1 for a step without positives
    steps: jax.Array  # [] int32, since the last renewal


class RoIs(NamedTuple):
    """Those of `assign.rois`, and one figure for each image."""

    boxes: jax.Array  # [R, 4]
    status: jax.Array  # [R]
    matched: jax.Array  # [R]
    index: jax.Array  # [R]
    ranked_iou: jax.Array  # [] the `iou_rank`-th largest IoU of the proposals and objects


class DynamicRCNN(faster_rcnn.FasterRCNN):
    """Faster R-CNN with another IoU threshold and box loss; parameters are the same."""

    proposal_nms_iou: float = 0.85
    update_interval: int = 100  # steps
    iou_rank: int = 75  # of the recorded IoU among those of an image, the largest first
    delta_rank: int = 10  # per image, of the recorded delta among those of a batch, smallest first
    lowest_iou: float = 0.4
    highest_beta: float = 1.0  # also until the first renewal

    def check(self) -> None:
        """Checks the fields of Faster R-CNN and those of the dynamic training."""
        super().check()
        rules = (
            *fields.at_least(self, 1, "update_interval", "iou_rank", "delta_rank"),
            ("lowest_iou", 0 < self.lowest_iou <= 1, "above 0 and at most 1"),
            *fields.above(self, 0, "highest_beta"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        super().setup()
        first = at_first(self.update_interval)._asdict()
        self.training = Training(
            *(self.variable("loss_state", name, jnp.array, first[name]) for name in first)
        )

    def present(self) -> tuple[jax.Array, jax.Array]:
        """The threshold of positives [] and the beta [] of a step."""
        iou, beta = self.training.iou.value, self.training.beta.value
        return (
            jnp.where(iou > 0, iou, self.positive_iou),
            jnp.where(beta > 0, beta, self.highest_beta),
        )

    def sample(
        self, keys: jax.Array, proposals: proposals_lib.Proposals, batch: types.Batch
    ) -> RoIs:
        """The RoIs [B, R, ...] that the box head is trained on; keys [B], one per image.

        Proposals are positive from the present threshold on (section 4.1).
        """
        iou, _ = self.present()

        def one_image(key, proposals, boxes, valid):
            found = rois_lib.candidates(proposals.boxes, proposals.valid, boxes, valid, iou)
            drawn = sampling.sample(key, found.status, self.box_samples, self.box_positive_fraction)
            largest, _ = lax.top_k(found.max_iou, min(self.iou_rank, len(found.max_iou)))
            rank = jnp.minimum(self.iou_rank, (found.status >= 0).sum())
            ranked = jnp.maximum(largest[rank - 1], 0.0)
            return RoIs(*rois_lib.drawn(found, drawn), ranked)

        return faster_rcnn.on_images(one_image)(keys, proposals, batch.boxes, batch.valid)

    def box_targets(self, rois: RoIs, batch: types.Batch) -> types.Targets:
        """Faster R-CNN's, and `ranked_iou` [B]."""
        found = super().box_targets(rois, batch)
        return found._replace(values={**found.values, "ranked_iou": rois.ranked_iou})

    def box_loss(
        self, batch: types.Batch, targets: types.Targets, logits: jax.Array, deltas: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Faster R-CNN's terms and metrics; updates `loss_state` after their computation."""
        terms, metrics = super().box_loss(batch, targets, logits, deltas)
        iou, beta = self.present()
        metrics |= {"positive_iou": iou, "box_beta": beta}
        now = Training(*(variable.value for variable in self.training))
        iou = targets.values["ranked_iou"].mean()
        delta = ranked_delta(targets, self.delta_rank)
        then = advance(now, iou, delta, self.lowest_iou, self.highest_beta)
        for variable, value in zip(self.training, then, strict=True):
            variable.value = value
        return terms, metrics

    def delta_loss(self, deltas: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each delta of the box head, [B, R, 4]: smooth L1 (section 4.2)."""
        _, beta = self.present()
        return regression.smooth_l1(deltas, targets, beta)


def at_first(interval: int) -> Training:
    """Before the first step."""
    zero, zeros = jnp.float32(0), jnp.zeros(interval)
    return Training(zero, zero, zeros, zeros, jnp.int32(0))


def ranked_delta(targets: types.Targets, rank: int) -> jax.Array:
    """[] the `rank` * B-th smallest delta of a batch; the largest if it has fewer, -1 if none.

    A positive's delta is the mean of the sizes of its targets dx and dy (algorithm 1).
    """
    positive = targets.status == 1  # [B, R]
    deltas = jnp.abs(targets.values["deltas"][..., :2]).mean(-1)
    most = min(rank * len(positive), positive.size)
    smallest, _ = lax.top_k(jnp.where(positive, -deltas, -jnp.inf).ravel(), most)
    count = jnp.minimum(most, positive.sum())
    return jnp.where(count > 0, -smallest[count - 1], -1.0)


def advance(
    now: Training, iou: jax.Array, delta: jax.Array, lowest_iou: float, highest_beta: float
) -> Training:
    """Records a step, and renews threshold and beta if the records are full (algorithm 1).

    The threshold is then the mean of the recorded IoUs, but at least `lowest_iou`; beta is the
    median of the recorded deltas, but at most `highest_beta`.  As in the reference, beta stays as
    it is if there are no deltas or their median is 0.

    Args:
      now: before the step.
      iou: [] to record.
      delta: [] to record; -1 if there is none.
      lowest_iou, highest_beta: see above.
    """
    interval = len(now.ious)
    ious, deltas = now.ious.at[now.steps].set(iou), now.deltas.at[now.steps].set(delta)
    steps = now.steps + 1
    full = steps == interval
    ordered = jnp.sort(jnp.where(deltas >= 0, deltas, jnp.inf))
    count = (deltas >= 0).sum()
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    known = (count > 0) & (median >= 1e-15)
    return Training(
        iou=jnp.where(full, jnp.maximum(ious.mean(), lowest_iou), now.iou),
        beta=jnp.where(full & known, jnp.minimum(median, highest_beta), now.beta),
        ious=ious,
        deltas=deltas,
        steps=jnp.where(full, 0, steps),
    )


MODULE = DynamicRCNN

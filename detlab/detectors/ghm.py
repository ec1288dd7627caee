"""RetinaNet with the gradient harmonizing mechanism (arXiv:1811.05181).

The focal loss reduces the weight of easy examples by a fixed formula.  GHM counts the examples with
a similar gradient norm and divides their influence by that count.  This also reduces the influence
of outliers, which the focal loss favours.

Reference: mmdetection's `retinanet_r50_fpn_ghm-1x_coco`.  As in the reference, each pyramid level
is counted separately, finest first: the averages change five times per step, and a loss term is
the sum of five losses, each divided by the number of bins that its level filled.  Counts are over
the global batch; the reference counts per GPU.  Their averages are the collection `loss_state`,
which training updates and checkpoints save and restore.  There is no common normaliser, so
gradient accumulation weights the parts of a batch equally.

Expected: COCO val2017 AP 37.0 with experiments/ghm_coco.py (the published figure of the
reference).
"""

import jax
import jax.numpy as jnp

from detlab import fields, types
from detlab.detectors import retinanet
from detlab.losses import cross_entropy, ghm


class GHM(retinanet.RetinaNet):
    """RetinaNet with other class and box losses; parameters and everything else are the same."""

    cls_bins: int = 30
    cls_momentum: float = 0.75
    box_bins: int = 10
    box_momentum: float = 0.7
    box_mu: float = 0.02  # of the authentic smooth L1, in normalised deltas
    box_weight: float = 10.0

    def check(self) -> None:
        """Checks the fields of RetinaNet and those of the two losses."""
        super().check()
        unused = "left at its default: GHM has no focal loss"
        rules = (
            *fields.at_least(self, 1, "cls_bins", "box_bins"),
            ("cls_momentum", 0 <= self.cls_momentum < 1, "at least 0 and below 1"),
            ("box_momentum", 0 <= self.box_momentum < 1, "at least 0 and below 1"),
            *fields.above(self, 0, "box_mu"),
            ("focal_alpha", self.focal_alpha == retinanet.RetinaNet.focal_alpha, unused),
            ("focal_gamma", self.focal_gamma == retinanet.RetinaNet.focal_gamma, unused),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        super().setup()
        self.cls_counts = self.variable("loss_state", "cls_counts", jnp.zeros, (self.cls_bins,))
        self.box_counts = self.variable("loss_state", "box_counts", jnp.zeros, (self.box_bins,))

    def loss(
        self, batch: types.Batch, maps: retinanet.Outputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """GHM-C on classes plus GHM-R on deltas; updates `loss_state`."""
        found = self.examples(batch, maps)
        cls_loss = cross_entropy.sigmoid_cross_entropy(found.cls_logits, found.one_hot)
        cls_norms = ghm.classification_norm(found.cls_logits, found.one_hot)  # [B, N, C]
        box_loss = ghm.authentic_smooth_l1(found.box_deltas, found.delta_targets, self.box_mu)
        box_norms = ghm.regression_norm(found.box_deltas, found.delta_targets, self.box_mu)

        cls = box = 0.0
        cls_counts, box_counts = self.cls_counts.value, self.box_counts.value
        for level in self.grid(batch.images.shape[1:3]).slices():
            weights, cls_counts = ghm.harmonize(
                cls_norms[:, level], found.counted[:, level, None], cls_counts, self.cls_momentum
            )
            cls += (weights * cls_loss[:, level]).sum()
            weights, box_counts = ghm.harmonize(
                box_norms[:, level], found.positive[:, level, None], box_counts, self.box_momentum
            )
            box += self.box_weight * (weights * box_loss[:, level]).sum()
        self.cls_counts.value, self.box_counts.value = cls_counts, box_counts
        positives = found.positive.sum() / batch.images.shape[0]
        return cls + box, {"loss/cls": cls, "loss/box": box, "positives": positives}


MODULE = GHM

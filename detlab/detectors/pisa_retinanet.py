"""RetinaNet with prime sample attention (PISA, arXiv:1904.04821).

Anchors are not equally important: the mean AP depends most on those that overlap their object best.
ISR-P ranks the positives by the overlap of their predicted boxes, within each object first, and
moves weight of the classification loss to the first.  CARL adds a box loss whose factors grow with
the score, which teaches the classifier to score well localized boxes higher.

Reference: mmdetection's `retinanet-r50_fpn_pisa_1x_coco`.  As in the reference, the sums and the
largest class are over the batch, and only positives are ranked; the paper also ranks negatives for
two stages.  Unlike in the reference, where objects of the third and later images can share the
number of another, every object is ranked on its own.  The normaliser is that of RetinaNet; the
reference counts per GPU.

Expected: COCO val2017 AP 36.9 with experiments/pisa_retinanet_coco.py (the published figure of the
reference).
"""

import functools

import jax
import jax.numpy as jnp

from detlab import fields, types
from detlab.detectors import retinanet
from detlab.losses import focal, pisa, regression
from detlab.ops import boxes as boxes_lib
from detlab.ops import coders


class PISARetinaNet(retinanet.RetinaNet):
    """RetinaNet with ISR-P, CARL and smooth L1; parameters and everything else are the same."""

    smooth_l1_beta: float = 0.11
    # Exponent and least value of the factors (section 4: gamma and beta of ISR, k and b of CARL).
    isr_k: float = 2.0
    isr_bias: float = 0.0
    carl_k: float = 1.0
    carl_bias: float = 0.2

    def check(self) -> None:
        """Checks the fields of RetinaNet and those of prime sample attention."""
        super().check()
        rules = (
            *fields.above(self, 0, "smooth_l1_beta"),
            *fields.at_least(self, 0, "isr_k", "carl_k"),
            *fields.fractions(self, "isr_bias", "carl_bias"),
        )
        fields.check(self, rules)

    def loss(
        self, batch: types.Batch, maps: retinanet.Outputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss with the weights of ISR-P, smooth L1 on deltas, and CARL."""
        found = self.examples(batch, maps)
        normaliser = jnp.maximum(found.positive.sum(1), 1).sum().astype(jnp.float32)
        cls = focal.sigmoid_focal(
            found.cls_logits, found.one_hot, self.focal_alpha, self.focal_gamma
        )
        cls = jnp.where(found.counted[..., None], cls, 0.0).sum(-1)  # [B, N]
        box = regression.smooth_l1(found.box_deltas, found.delta_targets, self.smooth_l1_beta)
        box = jnp.where(found.positive[..., None], box, 0.0).sum(-1)  # [B, N]

        # Section 4.1: prime samples first.
        anchors = self.anchors(self.grid(batch.images.shape[1:3]))
        decode = functools.partial(coders.decode_deltas, anchors, stds=self.delta_stds)
        ious = boxes_lib.iou(decode(found.box_deltas), decode(found.delta_targets))
        labels = jnp.take_along_axis(batch.labels, found.matched, axis=1)
        importance = pisa.isr_weights(
            ious, found.matched, labels, found.positive, cls, self.isr_k, self.isr_bias
        )
        # Section 4.2: the gradient of the box loss reaches the score of the object's class.
        scores = jax.nn.sigmoid((found.cls_logits * found.one_hot).sum(-1))
        attention = pisa.carl_weights(scores, found.positive, self.carl_k, self.carl_bias)

        terms = {
            "loss/cls": (importance * cls).sum() / normaliser,
            "loss/box": self.box_weight * box.sum() / normaliser,
            "loss/carl": self.box_weight * (attention * box).sum() / normaliser,
        }
        positives = found.positive.sum() / batch.images.shape[0]
        return sum(terms.values()), {**terms, "positives": positives, "normaliser": normaliser}


MODULE = PISARetinaNet

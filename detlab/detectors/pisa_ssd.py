"""SSD with prime sample attention (arXiv:1904.04821).

The anchors that overlap an object most decide its detection, so they count more in training: ISR-P
ranks the positives of an object by the overlap of their predicted boxes and weights their
classification loss by rank, and CARL multiplies box losses by softmax scores, whose gradient then
raises the scores of well localised anchors.

Reference: mmdetection's `pisa_ssd300_coco` and `pisa_ssd512_coco`.  As in the reference, CARL is
a term beside the box loss of SSD, and the hard negatives of SSD take the place of ISR-N.  Unlike
there, objects of two images never share an id, and ranks are over the global batch, in the
reference over that of a GPU.

Expected: COCO val2017 AP 27.6 with experiments/pisa_ssd_coco.py, 31.8 with its variant `512` (the
published figures of the reference).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import fields, types
from detlab.detectors import ssd
from detlab.losses import pisa
from detlab.ops import boxes as boxes_lib
from detlab.ops import coders


class PISASSD(ssd.SSD):
    """SSD with other weights in its loss; parameters and everything else are the same."""

    isr_k: float = 2.0  # section 4.1: gamma of the power ...
    isr_bias: float = 0.0  # ... and beta, the least weight before it
    carl_k: float = 1.0  # section 4.2: exponent of the scores ...
    carl_bias: float = 0.2  # ... and b, their least factor before it

    def check(self) -> None:
        """Checks the fields of SSD and those of the two weights."""
        super().check()
        rules = (
            *fields.at_least(self, 0, "isr_k", "carl_k"),
            *fields.fractions(self, "isr_bias", "carl_bias"),
        )
        fields.check(self, rules)

    def loss(self, batch: types.Batch, maps: ssd.Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """SSD's loss with ISR-P in the class term, plus CARL (sections 4.1 and 4.2)."""
        found = self.examples(batch, maps)
        cls, box = self.unreduced(found)
        weights = pisa.isr_weights(
            self.overlaps(batch, found),
            found.matched,
            found.labels,
            found.positive,
            cls,
            k=self.isr_k,
            bias=self.isr_bias,
        )
        scores = nn.softmax(found.cls_logits)
        scores = jnp.take_along_axis(scores, found.labels[..., None], axis=-1)[..., 0]  # [B, N]
        carl = box * pisa.carl_weights(scores, found.positive, self.carl_k, self.carl_bias)
        terms = {"loss/cls": weights * cls, "loss/box": box, "loss/carl": carl}
        return self.reduced(found, terms)

    def overlaps(self, batch: types.Batch, found: ssd.Examples) -> jax.Array:
        """IoU [B, N] of each positive's predicted box with its object; meaningless elsewhere."""
        anchors = self.anchors(self.grid(batch.images.shape[1:3]))
        boxes, objects = (
            coders.decode_deltas(anchors, deltas, stds=self.delta_stds)
            for deltas in (found.box_deltas, found.delta_targets)
        )
        return boxes_lib.iou(boxes, objects)


MODULE = PISASSD

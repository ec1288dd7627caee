"""Libra RetinaNet: Libra R-CNN (arXiv:1904.02701) with one stage.

The paper finds imbalance at three levels of training.  Two of its remedies fit RetinaNet: every
level of the pyramid gets the same share of all levels (balanced feature pyramid, section 3.2), and
accurate boxes contribute more to the gradient (balanced L1, section 3.3).  The third balances the
samples of a box head, which RetinaNet does not have; the focal loss takes its place.

Reference: mmdetection's `libra-retinanet_r50_fpn_1x_coco`.  As in the reference, and unlike the
paper, the pyramid is refined at its second level, P4, and the border of balanced L1 is 0.11, not 1.

Expected: COCO val2017 AP 37.6 with experiments/libra_retinanet_coco.py (the published figure of the
reference).
"""

import jax

from detlab import fields, layers
from detlab.detectors import retinanet
from detlab.losses import regression
from detlab.necks import bfp


class LibraRetinaNet(retinanet.RetinaNet):
    """RetinaNet with a balanced pyramid and box loss; everything else is the same."""

    refine_level: int = 1  # of the pyramid, from 0
    # Balanced L1: `alpha` and `gamma` of equation 6; the border of its branches, in deltas.
    balanced_l1_alpha: float = 0.5
    balanced_l1_gamma: float = 1.5
    balanced_l1_beta: float = 0.11

    def check(self) -> None:
        """Checks the fields of RetinaNet and those of the balanced parts."""
        super().check()
        rules = (
            fields.one_of(self, "refine_level", range(len(self.strides))),
            *fields.above(self, 0, "balanced_l1_alpha", "balanced_l1_gamma", "balanced_l1_beta"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        super().setup()
        self.balance = bfp.BFP(self.refine_level, dtype=self.dtype)

    def maps(self, images: jax.Array, train: bool) -> retinanet.Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        features = self.balance(features)
        return retinanet.Outputs(features, **self.head(features, train))

    def box_terms(self, found: retinanet.Examples) -> jax.Array:
        """The losses of the deltas, [B, N, 4]: balanced L1."""
        return regression.balanced_l1(
            found.box_deltas,
            found.delta_targets,
            self.balanced_l1_alpha,
            self.balanced_l1_gamma,
            self.balanced_l1_beta,
        )


MODULE = LibraRetinaNet

"""Libra R-CNN: Towards Balanced Learning for Object Detection (arXiv:1904.02701).

Training is out of balance at three levels, and each has a remedy (section 3).  Samples: the box
head sees as many negatives of every range of IoUs and as many positives of every object.  Features:
every level of the pyramid gets the same share of all levels.  Losses: balanced L1 lets accurate
boxes contribute more to the gradient.

Reference: mmdetection's `libra-faster-rcnn_r50_fpn_1x_coco`.  As in the reference, the RPN is
trained on at most five negatives per positive, and its box loss is L1.  Two things that happen to
the reference's samplers do not happen here: after its first call, that of negatives draws none that
overlap nothing while there are enough others; and that of positives fills up with candidates that
it may have drawn already, so that it returns too few.

Expected: COCO val2017 AP 38.3 with experiments/libra_rcnn_coco.py (the published figure of the
reference).
"""

import jax

from detlab import fields, layers, types
from detlab.assign import balanced
from detlab.assign import rois as rois_lib
from detlab.detectors import faster_rcnn
from detlab.losses import regression
from detlab.necks import bfp
from detlab.ops import proposals as proposals_lib


class LibraRCNN(faster_rcnn.FasterRCNN):
    """Faster R-CNN with balanced samples, pyramid and box loss."""

    rpn_negatives_per_positive: float = 5.0
    iou_bins: int = 3  # of the negatives of the box head
    refine_level: int = 2  # of the pyramid, from 0
    # Balanced L1: `alpha` and `gamma` of equation 6; the border of its branches, in deltas.
    balanced_l1_alpha: float = 0.5
    balanced_l1_gamma: float = 1.5
    balanced_l1_beta: float = 1.0

    def check(self) -> None:
        """Checks the fields of Faster R-CNN and those of the balanced parts."""
        super().check()
        rules = (
            *fields.at_least(self, 1, "iou_bins"),
            fields.one_of(self, "refine_level", range(len(self.strides))),
            *fields.above(self, 0, "balanced_l1_alpha", "balanced_l1_gamma", "balanced_l1_beta"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        super().setup()
        self.balance = bfp.BFP(self.refine_level, dtype=self.dtype)

    def sample(
        self, keys: jax.Array, proposals: proposals_lib.Proposals, batch: types.Batch
    ) -> rois_lib.RoIs:
        """The RoIs [B, R, ...] that the box head is trained on (section 3.1); keys [B]."""

        def one_image(key, proposals, boxes, valid):
            found = rois_lib.candidates(
                proposals.boxes, proposals.valid, boxes, valid, self.positive_iou
            )
            drawn = balanced.sample(
                key,
                found.status,
                found.matched,
                found.max_iou,
                num=self.box_samples,
                positive_fraction=self.box_positive_fraction,
                num_bins=self.iou_bins,
            )
            return rois_lib.drawn(found, drawn)

        return faster_rcnn.on_images(one_image)(keys, proposals, batch.boxes, batch.valid)

    def maps(self, images: jax.Array, train: bool) -> faster_rcnn.Maps:
        """Those of Faster R-CNN, from a balanced pyramid (section 3.2)."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        features = self.balance(features)
        return faster_rcnn.Maps(features, *self.rpn(features, train))

    def delta_loss(self, deltas: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each delta of the box head, [B, R, 4]: balanced L1 (section 3.3)."""
        return regression.balanced_l1(
            deltas,
            targets,
            self.balanced_l1_alpha,
            self.balanced_l1_gamma,
            self.balanced_l1_beta,
        )


MODULE = LibraRCNN

"""SSD300 on WIDER FACE (mmdetection's `ssd300_wider_face`).

    python -m detlab.train --config experiments/ssd_wider.py --config.data.root=WIDERFACE

The root holds WIDER_train, WIDER_val and wider_face_split.  As in the reference, anchors are those
of COCO, training ignores faces with a side under 17 px of the original image, and an epoch shows
the data twice.  Faces marked invalid are ignored too.  `:scratch` starts from random weights.

Expected: WIDER FACE | 24 epochs, not timed | 44 GB for 60 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common
from detlab.experiments.recipes import ssd

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base("ssd", num_classes=1)
    ssd.training(config, variant, lr=0.012, milestones=(16, 20), repeat=2)
    config.data.update(
        source="wider",
        root="data/WIDERFACE",
        train_splits=("train",),
        eval_splits=("val",),
        min_object=17,
        max_boxes=256,  # some images have more faces; the largest are kept
    )
    config.train.batch_size = 60
    config.optim.update(lr_batch_size=60, warmup_steps=1000)
    config.eval.best_by = "mAP12"
    ssd.start(config, variant, "experiments/ssd_wider.py")
    return config

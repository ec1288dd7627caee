"""RetinaNet-50 on WIDER FACE: small anchors and many objects per image.

    python -m detlab.train --config experiments/retinanet_wider.py --config.data.root=WIDERFACE

The root holds WIDER_train, WIDER_val and wider_face_split.  Anchors start at 16 px, half of
RetinaNet's, because many faces are even smaller.  Faces marked invalid are ignored.  `:scratch`
trains from random weights.

Expected: WIDER FACE | 12 epochs, not timed | 55 GB for 16 images | not run
"""

from ml_collections import ConfigDict

from detlab.experiments import common

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> ConfigDict:
    config = common.base(
        "retinanet",
        num_classes=1,
        octave_base_scale=2.0,
        max_detections=300,  # crowds
    )
    common.schedule_1x(config)
    config.data.update(
        source="wider",
        root="data/WIDERFACE",
        train_splits=("train",),
        eval_splits=("val",),
        max_boxes=256,  # some images have more faces; the largest are kept
    )
    config.eval.best_by = "mAP12"
    common.from_imagenet(config, "experiments/retinanet_wider.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

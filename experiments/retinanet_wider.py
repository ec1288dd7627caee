"""RetinaNet-50 on WIDER FACE: small anchors and many objects an image.

    python -m detlab.train --config experiments/retinanet_wider.py --config.data.root=WIDERFACE

The root holds WIDER_train, WIDER_val and wider_face_split.  Anchors begin at 16 px, half the size
of RetinaNet's own, as many faces are smaller still.  Faces marked invalid are ignored.  `:scratch`
trains from random weights.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "scratch"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'scratch'.")
    config = common.base("retinanet")
    config.model = ConfigDict(
        dict(
            num_classes=1,
            depth=50,
            backbone_norm="stored",
            frozen_stages=1,
            octave_base_scale=2.0,
            max_detections=300,  # crowds
            dtype="float32",
        )
    )
    config.data.update(
        source="wider",
        root="data/WIDERFACE",
        train_splits=("train",),
        eval_splits=("val",),
        canvases=((800, 1344), (1344, 800)),
        size_limits=(1333, 800),
        max_boxes=256,  # some images have more faces still; the largest are kept
    )
    common.schedule_1x(config)
    config.eval.update(best_by="mAP12")
    common.from_imagenet(config, "experiments/retinanet_wider.py")
    if variant == "scratch":
        common.from_scratch(config)
    return config

"""RetinaNet-18 on BCCD, 364 microscope pictures of blood cells in VOC layout, from scratch.

    python -m detlab.train --config experiments/retinanet_bccd.py --config.data.root=BCCD

The root holds Annotations, ImageSets and JPEGImages.  Pictures of 640x480 are halved.  About 45
minutes on 2 CPU cores; seed 0 gives AP 0.56 and AP50 0.89 on the 72 images of the test split.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("retinanet")
    common.small_from_scratch(config, num_classes=3, warmup_steps=100)
    config.data.update(
        source="voc",
        root="data/bccd",
        class_names=("RBC", "WBC", "Platelets"),
        train_splits=("trainval",),
        eval_splits=("test",),
        canvases=((240, 320),),
        flip_vertical=0.5,  # a slide has no upper side
        max_boxes=48,
    )
    config.train.update(epochs=40, log_every=10, eval_every=185)
    config.eval.update(best_by="AP50")
    return config

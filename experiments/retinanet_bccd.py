"""RetinaNet-18 on BCCD, 364 microscope pictures of blood cells in VOC layout, from scratch.

    python -m detlab.train --config experiments/retinanet_bccd.py --config.data.root=BCCD

The root holds Annotations, ImageSets and JPEGImages.  Pictures of 640x480 are halved.  The test
split has 72 images; results are in benchmarks/results.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config() -> ConfigDict:
    config = common.base("retinanet")
    config.model = ConfigDict(
        dict(
            num_classes=3,
            depth=18,
            neck_width=64,
            head_width=64,
            head_convs=2,
            octave_base_scale=3.0,  # platelets have about 20 px after halving
            delta_stds=(0.1, 0.1, 0.2, 0.2),
            box_weight=0.25,
        )
    )
    common.from_scratch(config)
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
    config.train.update(batch_size=8, epochs=40, log_every=10, eval_every=185)
    config.optim.update(
        name="adamw",
        lr=1.5e-3,
        lr_batch_size=8,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=100,
        warmup_factor=0.01,
        clip_norm=10.0,
    )
    config.eval.update(best_by="AP50")
    return config

"""Every shipped experiment loads, builds its detector and has only the shared keys."""

import functools
import importlib
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from detlab import checks, contract, errors
from detlab import config as config_lib
from detlab.data import augment, plan, settings
from detlab.experiments import common
from detlab.run import checkpoint, optim
from detlab.run import state as state_lib

# Variants of experiments that list none, because they take a path, or that list very many.
SOME_VARIANTS = {
    "darknet_bccd": ["yolov3_tiny", "yolov4_tiny"],
    **{name: ["n", "x"] for name in ("yolov5_bccd", "yolov5_coco", "yolov5_voc")},
}


def variants(name):
    """The empty variant and those that the experiment lists.

    Without the forms `overfit` and `tiny`, which benchmarks.overfit and the contract's tests cover.
    """
    known = SOME_VARIANTS.get(name) or config_lib.variants(name)
    return ["", *(form for form in known if form.partition("_")[0] not in ("overfit", "tiny"))]


EXPERIMENTS = [
    f"{name}:{variant}" if variant else name
    for name in config_lib.shipped()
    for variant in variants(name)
]


def keys(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


# Fields of models that do not change the paths of a detector's leaves.  Experiments that differ
# only in these are traced once.
SAME_PATHS = {
    *("num_classes", "dtype", "backbone_norm", "frozen_stages", "style", "pixel_mean", "pixel_std"),
    *("octave_base_scale", "anchor_scale", "roi_scale", "delta_stds", "box_weight", "box_loss"),
    *("center_radius", "centerness_on_box", "distances_in_strides", "level_limits"),
    *("input_size", "clip_anchors", "score_threshold"),
    *("class_gain", "objectness_gain", "train_size", "init_assigner"),
    *("nms_iou", "max_detections", "box_samples", "rpn_samples", "predict_sampling_ratio"),
    *("proposals", "proposals_per_level", "train_proposals", "train_proposals_per_level"),
}


def shaping(config):
    """(detector, the fields of its model that may change the paths of its leaves)."""
    fields = config.model.to_dict()
    kept = {key: value for key, value in fields.items() if key not in SAME_PATHS}
    return config.detector, repr(sorted(kept.items()))


@functools.cache
def abstract_leaves(name):
    config = load(name)
    images = state_lib.example_images(config)
    return jax.eval_shape(contract.build(config).init, jax.random.key(0), images)


@functools.cache
def first_alike():
    """Fields that shape the leaves -> the first experiment with these."""
    return {shaping(load(name)): name for name in reversed(EXPERIMENTS)}


def abstract_model(name):
    """(detector, params, state): abstract leaves with the same paths as the experiment's."""
    config = load(name)
    return contract.build(config), *abstract_leaves(first_alike()[shaping(config)])


@functools.cache
def load(name):
    """The experiment's config, which no test may change."""
    return config_lib.load(name)


def test_every_file_ships_and_variants_are_found(repository):
    files = {p.stem for p in (repository / "experiments").glob("*.py")}
    assert set(config_lib.shipped()) == files - {"__init__", "common"}
    assert {"retinanet_voc", "retinanet_voc:scratch", "retinanet_shapes"} <= set(EXPERIMENTS)


def test_every_variant_is_listed_by_its_file():
    for name in config_lib.shipped():
        get_config = importlib.import_module(f"detlab.experiments.{name}").get_config
        takes_one = bool(inspect.signature(get_config).parameters)
        assert takes_one == bool(config_lib.variants(name)) or name == "darknet_bccd", name
    with pytest.raises(errors.UserError, match="'yolov4_tiny' or the path of a cfg"):
        config_lib.load("darknet_bccd:yolov4tiny")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_has_exactly_the_keys_of_base_with_values_of_their_types(name):
    config = load(name)
    base = common.base(config.detector)
    assert config.keys() == base.keys()
    for group in set(config) - {"model"}:
        ours, theirs = config[group], base[group]
        assert type(ours) is type(theirs), group
        if hasattr(theirs, "items"):
            of_base = {key for key in keys(ours) if not key.startswith("model.")}
            assert of_base == set(keys(theirs)), group
            for key in theirs:
                same = type(ours[key]) is type(theirs[key])
                assert same, key


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_keeps_the_rules_of_every_key_also_when_read_back(name):
    config = load(name)
    checks.check_config(config)
    checks.check_config(config_lib.from_json(config_lib.to_json(config)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_is_locked_but_for_its_model(name):
    config = load(name)
    groups = [config, config.data, config.train, config.optim, config.eval]
    groups.append(config.predict)
    assert all(group.is_locked for group in groups)
    assert not config.model.is_locked and not config.predict.model.is_locked


@pytest.mark.parametrize("name", tiny.TINY)
def test_fields_that_are_put_aside_leave_all_paths_as_they_are(name):
    """On the tiny detector, with the values that experiments give these fields."""
    entry = tiny.TINY[name]
    values = {}
    for experiment in EXPERIMENTS:
        config = load(experiment)
        if config.detector == entry.detector:
            for key in SAME_PATHS & set(config.model.keys()):
                values.setdefault(key, {})[repr(config.model[key])] = config.model[key]

    def paths(**fields):
        model = ConfigDict(dict(detector=entry.detector, model=entry.fields | fields))
        images = jax.ShapeDtypeStruct((1, *entry.canvas, 3), jnp.uint8)
        return jax.tree.structure(
            jax.eval_shape(contract.build(model).init, jax.random.key(0), images)
        )

    own = paths()
    turns = [len(of) for key, of in values.items() if key != "num_classes"]
    for turn in range(max(turns, default=1)):
        changed = {key: [*of.values()][turn % len(of)] for key, of in values.items()}
        assert paths(**changed) == own, changed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_builds_its_detector_and_optimizer(name):
    config = load(name)
    detector, params, state = abstract_model(name)
    assert sum(x.size for x in jax.tree.leaves(params)) > 1e6
    built = optim.build(
        config.optim,
        params,
        total_steps=100_000,
        batch_size=config.train.batch_size,
        steps_per_unit=1000,
        frozen=detector.frozen,
    )
    assert set(jax.tree.leaves(built.labels)) <= {"train", "frozen"}
    assert float(built.schedule(config.optim.warmup_steps)) > 0
    paths = checkpoint.flat_paths(params, state)
    for pattern in detector.frozen:
        assert any(re.fullmatch(pattern, p) for p in paths), pattern
    for pattern in config.init_skip:
        assert any(re.fullmatch(pattern, p) for p in paths), pattern


TRAINED_WHOLE = {"ssd", "pisa_ssd"}  # their pretrained backbone has no leaf that never changes


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_leaves_that_never_change_come_from_a_file(name):
    config = load(name)
    frozen = contract.build(config).frozen
    if config.detector in TRAINED_WHOLE:
        assert not frozen
    else:
        assert bool(config.init_from) == bool(frozen)
    assert bool(config.init_from) == bool(config.init_help)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_survives_json(name):
    config = load(name)
    back = config_lib.from_json(config_lib.to_json(config))
    assert back.to_dict() == config.to_dict()


# Family -> how the sides of images are rounded in training, evaluation and the demo, and how
# evaluation shrinks images.  docs/data.md has the sources.
SIZES = {
    "mmdet": ("half_up", "half_up", "half_up", "linear"),
    "YOLOv5": ("down", "down", "half_even", "area"),  # releases 1.0 to 7.0
    "darknet": ("whole", "whole", "whole", "corners"),
    "darknet_bccd": ("whole", "whole", "whole", "linear"),  # not darknet's own protocol
}
# Experiments on generated images, which are square like their canvases.
SQUARES = {"yolov5_shapes", "darknet_shapes"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_resizes_pictures_as_its_family_does(name):
    config = load(name)
    family = {"yolov5": "YOLOv5", "darknet": "darknet"}.get(config.detector, "mmdet")
    if name.partition(":")[0] in SQUARES:
        assert config.data.source == "shapes"
        family = "mmdet"
    training, evaluation, shown = (
        settings.of(config.data, use) for use in ("train", "eval", "demo")
    )
    if name.partition(":")[0] == "darknet_bccd":
        family = "darknet_bccd"
    rounding = training.rounding, evaluation.rounding, shown.rounding
    assert (*rounding, evaluation.shrink) == SIZES[family]
    assert training.shrink == shown.shrink == "linear"
    assert training.resize == evaluation.resize == shown.resize
    resize = {"YOLOv5": "letterbox", "mmdet": None}.get(family, "stretch")
    assert resize is None or training.resize == resize


# The values of detect.py; of `detector test`; and of mmdetection's demo.
PREDICT = {
    "yolov5": dict(threshold=0.25, top_k=1000, shrink="linear"),
    "darknet": dict(threshold=0.25, top_k=1000, shrink="corners"),
    "mmdet": dict(threshold=0.3, top_k=100, shrink="linear", rectangles=0, model={}),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_predicts_as_its_family_does(name):
    config = load(name)
    own = name.partition(":")[0]
    family = config.detector if config.detector in PREDICT else "mmdet"
    if own in SQUARES or own == "darknet_bccd":
        family = "mmdet"
    found, expected = config.predict.to_dict(), dict(PREDICT[family])
    if config.detector == "paa":
        expected["threshold"] = 0.5  # its scores are square roots
    assert found | expected == found
    if family == "darknet":
        assert found["model"] == {"max_detections": 1000} and not found["rectangles"]
    if family == "yolov5":
        assert found["model"] == dict(nms_iou=0.45, multi_label=False, max_detections=1000)
        variant = name.partition(":")[2]
        large = "6" in variant
        assert found["rectangles"] == (64 if large or variant.endswith("_v3") else 32)
        assert config.eval.rectangles == (0 if own == "yolov5_bccd" else 64 if large else 32)
    else:
        assert not config.eval.rectangles


@pytest.mark.parametrize(
    "name, size, evaluation, shown",
    [  # height, width px
        ("yolov5_coco", (820, 1024), (512, 640), (512, 640)),
        ("yolov5_coco:s_v5", (828, 1024), (517, 640), (518, 640)),
        ("yolov5_coco:s_v3", (512, 773), (423, 640), (424, 640)),  # eagle.jpg, horses.jpg
        ("yolov5_coco:s6", (512, 773), (847, 1280), (848, 1280)),
        ("yolov5_coco", (606, 606), (639, 639), (640, 640)),
        ("retinanet_coco", (640, 642), (800, 803), (800, 803)),
        ("retinanet_coco", (512, 773), (800, 1208), (800, 1208)),
        ("yolov3_coco", (820, 1024), (487, 608), (487, 608)),
        ("darknet_coco", (820, 1024), (608, 608), (608, 608)),
        ("darknet_coco:yolov3_tiny", (512, 773), (416, 416), (416, 416)),
    ],
)
def test_sides_of_pictures_are_those_of_the_family(name, size, evaluation, shown):
    data = load(name).data
    record = {
        "image": np.zeros((*size, 3), np.uint8),
        "boxes": np.float32([[0, 0, *size[::-1]]]),
        "area": np.ones(1, np.float32),
    }
    [canvas] = [
        canvas
        for canvas, group in zip(data.canvases, plan.group_by_canvas([size], data.canvases))
        if len(group)
    ]
    for use, expected in (("eval", evaluation), ("demo", shown)):
        resize = augment.resizer(settings.of(data, use))
        x1, y1, x2, y2 = resize(record, *canvas)["boxes"][0]
        np.testing.assert_allclose((y2 - y1, x2 - x1), expected, atol=1e-3)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_schedule_and_length_fit_together(name):
    config = load(name)
    assert bool(config.train.epochs) != bool(config.train.steps)
    length = config.train.epochs or config.train.steps
    if config.optim.schedule == "step":
        assert list(config.optim.milestones) == sorted(config.optim.milestones)
        assert all(0 < m < length for m in config.optim.milestones)


def test_help_for_missing_weights_names_experiments_that_exist(repository):
    for name in EXPERIMENTS:
        text = load(name).init_help
        for path in re.findall(r"experiments/\w+\.py", text):
            assert pathlib.Path(repository, path).is_file()
        for scratch in re.findall(r"--config (\S+?)[`]", text):
            assert not load(scratch).init_from

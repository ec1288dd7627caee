"""The rules for configs, and the error sentence for each broken rule."""

import functools
import operator

import pytest
from ml_collections import ConfigDict

from detlab import checks, errors
from detlab.experiments import common


def example(**changes):
    """A new config that obeys every rule, with changes; `__` stands for the dot in a key."""
    values = common.base("retinanet").to_dict()
    values["train"]["steps"] = 10
    for name, value in changes.items():
        *groups, key = name.split("__")
        functools.reduce(operator.getitem, groups, values)[key] = value
    return ConfigDict(values)


def refusal(config):
    with pytest.raises(errors.UserError) as caught:
        checks.check_config(config)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


# Keys


def test_the_rules_are_for_the_keys_of_the_experiments():
    def keys(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, ConfigDict) and key != "model":
                yield from keys(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    assert set(keys(common.base("retinanet"))) == {*(*checks.RULES, "model", "predict.model")}


@pytest.mark.parametrize("key", checks.RULES)
def test_a_missing_key_is_named_with_where_to_start(key):
    config = example()
    *groups, leaf = key.split(".")
    del functools.reduce(operator.getitem, groups, config)[leaf]
    assert refusal(config) == (
        f"config.{key} is missing; start the config from experiments.common.base."
    )


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            dict(data__max_boxs=3),
            "config.data.max_boxs is not a known key. Did you mean 'data.max_boxes'?",
        ),
        (
            dict(trian=ConfigDict(dict(steps=3))),
            "config.trian.steps is not a known key. Did you mean 'train.steps'?",
        ),
        (dict(sead=3), "config.sead is not a known key. Did you mean 'seed'?"),
        (dict(qqqq=3), "config.qqqq is not a known key."),
        (dict(train=3), "config.train is not a known key. Did you mean 'train'?"),
        (dict(model=3), "config.model is 3; it must be a ConfigDict of the detector's fields."),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(changes, sentence):
    assert refusal(example(**changes)) == sentence


@pytest.mark.parametrize(
    "config, start",
    [
        (ConfigDict(), "config.model is None;"),
        (ConfigDict(dict(model=dict(depth=18))), "config.detector is missing;"),
    ],
)
def test_a_config_made_by_hand_is_sent_to_base(config, start):
    assert refusal(config).startswith(start)


# Values


def values(key, words, *bad):
    return [(key, value, words) for value in bad]


NOT_INTEGERS = ("1", 1.0, True, None, (1,))
NOT_TEXTS = (3, None, ("a",))
NOT_FRACTIONS = (-0.1, 1.1, float("nan"), True, "0.5", None)


@pytest.mark.parametrize(
    "key, value, words",
    [
        *values("detector", "a string", *NOT_TEXTS),
        *values("seed", "an integer from 0 to 2**32 - 1", -1, 2**32, *NOT_INTEGERS),
        *values("init_from", "a string", *NOT_TEXTS),
        *values("eval__views", "a tuple of one or more of image, mirror", (), ("flip",), "image"),
        *values("eval__views", "a tuple of one or more", ("image", "image")),
        *values("init_skip", "a tuple of regular expressions", "a", ["a"], (3,), ("[",), (("a",),)),
        *values("compilation_cache", "True or False", 1, "yes", None),
        *values("data__root", "a string", *NOT_TEXTS),
        *values(
            "data__class_names", "a tuple of different strings", "RBC", ("a", "a"), (1,), (("a",),)
        ),
        *values("data__train_splits", "a tuple of strings", "train", (2007,), None),
        *values(
            "data__rename_classes",
            "a tuple of pairs of names",
            ("a", "b"),
            (("a",),),
            (("a", 1),),
            (["a", "b"],),
        ),
        *values("data__tfds_name", "a string", *NOT_TEXTS),
        *values("data__train_also", "a tuple of dicts of keys of config.data", "coco", ("coco",)),
        *values("data__train_repeat", "an integer, at least 1", 0, *NOT_INTEGERS),
        *values("data__keep_empty", "True or False", 1, "yes", None),
        *values(
            "data__canvases",
            "a tuple of (height, width) px, each at least 32",
            (),
            (64, 64),
            ((64,),),
            ((64, 64, 3),),
            ((31, 64),),
            ((64.0, 64),),
            (("64", "64"),),
            ([64, 64],),
            "64x64",
            64,
        ),
        *values("data__resize", "one of fit, letterbox, stretch", "crop", None, ("fit",)),
        *values("data__rounding", "one of half_up, half_even, down, up, whole", "floor", None, 1),
        *values("data__demo_rounding", "one of half_up, half_even, down, up, whole", "", 0.5),
        *values("data__exif", "one of auto, upright, stored", "ignore", "", True, None),
        *values("data__eval_shrink", "one of linear, area, corners", "cubic", True),
        *values("eval__rectangles", "an integer, at least 0", -32, *NOT_INTEGERS),
        *values("predict__threshold", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("predict__top_k", "an integer, at least 1", 0, *NOT_INTEGERS),
        *values("predict__rectangles", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("predict__shrink", "one of linear, area, corners", "cubic", None),
        *values(
            "data__size_limits",
            "() or (long, short) px",
            (600,),
            (1000, 600, 3),
            (0, 0),
            (600, 1000),
            ("a", "b"),
            600,
        ),
        *values("data__flip_horizontal", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("data__flip_vertical", "a number from 0 to 1", *NOT_FRACTIONS),
        *values(
            "data__pad_value",
            "an integer from 0 to 255, or three of them",
            -1,
            256,
            1.5,
            (1, 2),
            (1, 2, 256),
            (1.0, 2, 3),
            "grey",
            ("a", "b", "c"),
            True,
        ),
        *values(
            "data__augment__crop", "one of none, random, min_iou, center, jitter", "some", None
        ),
        *values("data__augment__crop_jitter", "a number from 0 to below 0.5", 0.5, -0.1, "0"),
        *values("data__augment__mosaic", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("data__augment__mosaic_nine", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("data__augment__affine", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("data__augment__affine_degrees", "a number, at least 0", -1, "0"),
        *values("data__augment__affine_translate", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("data__augment__affine_scale", "a number from 0 to below 1", 1, -0.1, None),
        *values("data__augment__affine_shear", "a number from 0 to below 45", 45, -1),
        *values("data__augment__affine_perspective", "a number, at least 0", -1e-3, None),
        *values("data__augment__box_min_side", "a number, at least 0", -1, None),
        *values("data__augment__box_min_part", "a number from 0 to below 1", 1.0, -0.1),
        *values("data__augment__box_max_ratio", "a number above 1", 1, 0, float("inf")),
        *values("data__augment__mixup", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("data__augment__mixup_beta", "a number above 0", 0, -1.0),
        *values("data__augment__hsv", "a number from 0 to 1", *NOT_FRACTIONS),
        *values(
            "data__augment__hsv_gains",
            "three numbers, at least 0",
            0.1,
            (0.1, 0.2),
            (0.1, 0.2, -1),
            [0.1, 0.2, 0.3],
        ),
        *values("data__augment__hsv_form", "one of yolov5, darknet", "ssd", None),
        *values("data__max_boxes", "an integer, at least 1", 0, -1, *NOT_INTEGERS),
        *values("data__min_side", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("data__min_object", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("data__read_threads", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("data__workers", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("train__batch_size", "an integer, at least 1", 0, *NOT_INTEGERS),
        *values("train__epochs", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("train__steps", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("train__log_every", "an integer, at least 1", 0, *NOT_INTEGERS),
        *values("train__keep_last", "an integer, at least 1", 0, *NOT_INTEGERS),
        *values("train__eval_every", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("train__checkpoint_every", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("optim__name", "one of sgd, adamw", "lion", None),
        *values(
            "optim__lr", "a number above 0", 0, 0.0, -1.0, float("inf"), float("nan"), "1", True
        ),
        *values("optim__lr_batch_size", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("optim__momentum", "a number from 0 to below 1", -0.1, 1, 1.0, "0.9"),
        *values("optim__nesterov", "True or False", 1, None),
        *values("optim__weight_decay", "a number, at least 0", -1e-4, "0"),
        *values("optim__no_decay", "a tuple of regular expressions", ("*",), "params/.*"),
        *values("optim__freeze", "a tuple of regular expressions", ("(",), (None,)),
        *values("optim__clip_norm", "a number, at least 0", -1, None),
        *values("optim__schedule", "one of step, cosine, linear, constant", "exponential"),
        *values(
            "optim__milestones",
            "a tuple of increasing numbers above 0",
            (11, 8),
            (8, 8),
            (0, 1),
            ("8", "11"),
            8,
            [8, 11],
        ),
        *values("optim__milestone_factor", "a number above 0", 0.0, -1),
        *values("optim__warmup_steps", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("optim__warmup_factor", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("optim__warmup_power", "a number above 0", 0.0, -1),
        *values("optim__warmup_momentum", "a number from 0 to below 1", 1.0, -0.1, None),
        *values("optim__warmup_bias_lr", "a number, at least 0", -0.1, None),
        *values("optim__biases", "a tuple of regular expressions", "params/.*", ("[",)),
        *values("optim__final_factor", "a number from 0 to 1", *NOT_FRACTIONS),
        *values("optim__decay_from", "one of warmup, start", "end", None),
        *values("eval__batch_size", "an integer, at least 1", 0, *NOT_INTEGERS),
        *values("eval__best_by", "one of AP, AP50, AP75, mAP07, mAP12", "ap", None),
        *values("eval__pictures", "an integer, at least 0", -1, *NOT_INTEGERS),
        *values("eval__threshold", "a number from 0 to 1", *NOT_FRACTIONS),
    ],
)
def test_a_value_that_breaks_its_rule_is_named_with_the_rule(key, value, words):
    message = refusal(example(**{key: value}))
    dotted = key.replace("__", ".")
    assert message.startswith(f"config.{dotted} is {value!r}; it must be {words}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(seed=2**32 - 1, init_skip=("params/(neck|head)/.*",)),
        dict(data__canvases=((32, 32), (800, 1344)), data__pad_value=114, data__min_side=0),
        dict(data__size_limits=(1333, 800), data__class_names=("a", "b"), data__read_threads=0),
        dict(data__flip_horizontal=1, data__flip_vertical=0.0, data__max_boxes=1),
        dict(data__train_also=({}, dict(source="voc", rename_classes=(("a", "b"),)))),
        dict(train__steps=0, train__epochs=1, train__log_every=1, train__keep_last=1),
        dict(optim__lr=1, optim__momentum=0, optim__milestones=(), optim__final_factor=1),
        dict(
            optim__milestones=(0.5, 8), optim__clip_norm=10, optim__freeze=("params/backbone/.*",)
        ),
        dict(eval__best_by="mAP07", eval__pictures=0, eval__threshold=0),
    ],
)
def test_values_at_the_edges_are_taken(changes):
    checks.check_config(example(**changes))


# Rules between keys


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            dict(train__epochs=12, train__steps=5),
            "config.train.epochs is 12 and config.train.steps is 5; set one of them to 0.",
        ),
        (
            dict(train__steps=0),
            "config.train.epochs and config.train.steps are both 0; set one to the"
            " length of the run.",
        ),
        (
            dict(data__train_also=({}, dict(root="data", train_splits="train"))),
            "config.data.train_also has 'train_splits': 'train'; it must be a tuple of strings,"
            " such as ('train',).",
        ),
        (
            dict(data__resize="stretch", data__size_limits=(1333, 800)),
            "config.data.size_limits is (1333, 800), which needs config.data.resize=fit; change"
            " resize, or set the limits to ().",
        ),
        (
            dict(data__resize="stretch", eval__rectangles=32),
            "config.eval.rectangles is 32, which has no effect with config.data.resize=stretch;"
            " change resize, or set rectangles to 0.",
        ),
        (
            dict(data__resize="stretch", predict__rectangles=64),
            "config.predict.rectangles is 64, which has no effect with config.data.resize=stretch;"
            " change resize, or set rectangles to 0.",
        ),
        (
            dict(data__resize="letterbox", data__multiscale_limits=((128, 64),)),
            "config.data.multiscale_limits is ((128, 64),), which needs config.data.resize=fit;"
            " change resize, or set the limits to ().",
        ),
        (
            dict(data__multiscale_canvases=(((96, 96),), ((64, 96), (96, 64)))),
            "config.data.multiscale_canvases has the alternative ((64, 96), (96, 64)); each must"
            " have as many canvases as config.data.canvases, 1.",
        ),
        (
            dict(data__multiscale="range"),
            "config.data.multiscale=range samples between config.data.multiscale_limits, which has"
            " 0 entries; give two or more.",
        ),
        (
            dict(data__multiscale_limits=((128, 64), (160, 96))),
            "config.data.multiscale_limits has (160, 96), which does not fit the canvas (128, 128);"
            " lower the limit or enlarge the canvas.",
        ),
        (
            dict(train__batch_size=16, train__accumulate=3),
            "config.train.batch_size is 16; it must be a multiple of config.train.accumulate, 3.",
        ),
        (
            dict(data__augment__hsv_form="darknet"),
            "config.data.augment.hsv_gains is (0.015, 0.7, 0.4); with hsv_form=darknet the last"
            " two are the largest factors of saturation and value, so they must be at least 1.",
        ),
        (
            dict(data__augment__hsv_gains=(0.1, 1.5, 1.5)),
            "config.data.augment.hsv_gains is (0.1, 1.5, 1.5); with hsv_form=yolov5 factors range"
            " from 1 - gain to 1 + gain, so each gain must be at most 1.",
        ),
        (
            dict(optim__name="adamw", optim__warmup_momentum=0.8),
            "config.optim.warmup_momentum is 0.8, which needs config.optim.name=sgd; set it to 0.",
        ),
        (
            dict(optim__warmup_bias_lr=0.1, optim__warmup_steps=0),
            "config.optim.warmup_bias_lr is 0.1, which has no effect while"
            " config.optim.warmup_steps is 0; set warmup_steps above 0 or warmup_bias_lr to 0.",
        ),
        (
            dict(optim__ema_warmup=100),
            "config.optim.ema_warmup is 100, which has no effect while config.optim.ema_decay is 0;"
            " set ema_decay above 0 or ema_warmup to 0.",
        ),
    ],
)
def test_keys_that_exclude_each_other_are_named_together(changes, sentence):
    assert refusal(example(**changes)) == sentence

"""Validation of configs: one rule for each key, then rules that relate keys.

experiments/common.py has the same keys and says what they mean.  The detector checks the fields of
`config.model`, see `detlab.contract.build`.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from detlab import errors


class Rule(NamedTuple):
    """A predicate on values, and the same rule in words."""

    fits: Callable[[Any], bool]
    words: str


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_regex(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str)


def _is_tuple_of(value: Any, fits: Callable[[Any], bool], length: int | None = None) -> bool:
    right_length = isinstance(value, tuple) and length in (None, len(value))
    return right_length and all(fits(v) for v in value)


def _is_canvas(value: Any) -> bool:
    return _is_tuple_of(value, lambda side: _is_integer(side) and side >= 32, 2)


def _is_colour(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= 255


def _is_part(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_increasing(value: Any) -> bool:
    if not _is_tuple_of(value, _is_number):
        return False
    return all(a < b for a, b in itertools.pairwise((0, *value)))


def _are_limits(value: Any) -> bool:
    if not _is_tuple_of(value, _is_integer):
        return False
    return value == () or (len(value) == 2 and value[0] >= value[1] > 0)


def _integer(low: int) -> Rule:
    return Rule(lambda v: _is_integer(v) and v >= low, f"an integer, at least {low}")


def _one_of(*values: str) -> Rule:
    return Rule(lambda v: v in values, f"one of {', '.join(values)}")


TEXT = Rule(_is_text, "a string")
FLAG = Rule(lambda v: isinstance(v, bool), "True or False")
POSITIVE = Rule(lambda v: _is_number(v) and v > 0, "a number above 0")
NOT_NEGATIVE = Rule(lambda v: _is_number(v) and v >= 0, "a number, at least 0")
FRACTION = Rule(_is_part, "a number from 0 to 1")
BELOW_ONE = Rule(lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
PARTS = Rule(
    lambda v: _is_tuple_of(v, _is_part, 2) and 0 < v[0] <= v[1],
    "(least, largest) part of a side, above 0 and at most 1, such as (0.3, 1.0)",
)
TEXTS = Rule(lambda v: _is_tuple_of(v, _is_text), "a tuple of strings, such as ('train',)")
REGEXES = Rule(
    lambda v: _is_tuple_of(v, _is_regex),
    "a tuple of regular expressions, such as ('params/head/.*',)",
)
# Same names as in detlab/data/transforms.py; not imported, to keep --help fast.
ROUNDING = _one_of("half_up", "half_even", "down", "up", "whole")

SHRINK = _one_of("linear", "area", "corners")

VIEWS = ("image", "mirror")  # names in `views.VIEWS`, whose module imports jax

RULES = {
    "detector": TEXT,
    # jax and NumPy both accept 32-bit seeds.
    "seed": Rule(lambda v: _is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 2**32 - 1"),
    "init_from": TEXT,
    "init_skip": REGEXES,
    "init_help": TEXT,
    "compilation_cache": FLAG,
    "data.source": TEXT,
    "data.root": TEXT,
    "data.class_names": Rule(
        lambda v: _is_tuple_of(v, _is_text) and len(set(v)) == len(v),
        "a tuple of different strings, such as ('cat', 'dog')",
    ),
    "data.train_splits": TEXTS,
    "data.eval_splits": TEXTS,
    "data.train_images": TEXT,
    "data.train_annotations": TEXT,
    "data.eval_images": TEXT,
    "data.eval_annotations": TEXT,
    # Same names as in detlab/data/records.py.
    "data.exif": _one_of("auto", "upright", "stored"),
    "data.rename_classes": Rule(
        lambda v: _is_tuple_of(v, lambda pair: _is_tuple_of(pair, _is_text, 2)),
        "a tuple of pairs of names, such as (('aeroplane', 'airplane'),)",
    ),
    "data.tfds_name": TEXT,
    "data.train_also": Rule(
        lambda v: _is_tuple_of(v, lambda part: hasattr(part, "items")),
        "a tuple of dicts of keys of config.data",
    ),
    "data.train_repeat": _integer(1),
    "data.keep_empty": FLAG,
    "data.canvases": Rule(
        lambda v: _is_tuple_of(v, _is_canvas) and v != (),
        "a tuple of (height, width) px, each at least 32, such as ((800, 1344), (1344, 800))",
    ),
    "data.resize": _one_of("fit", "letterbox", "stretch"),
    "data.rounding": ROUNDING,
    "data.demo_rounding": ROUNDING,
    "data.eval_shrink": SHRINK,
    "data.size_limits": Rule(_are_limits, "() or (long, short) px, such as (1333, 800)"),
    "data.multiscale_canvases": Rule(
        lambda v: _is_tuple_of(v, lambda alternative: _is_tuple_of(alternative, _is_canvas)),
        "a tuple of alternatives to data.canvases, such as (((320, 320),), ((416, 416),))",
    ),
    "data.multiscale_limits": Rule(
        lambda v: _is_tuple_of(v, lambda limits: _are_limits(limits) and limits != ()),
        "a tuple of (long, short) px, such as ((1333, 640), (1333, 800))",
    ),
    "data.multiscale": _one_of("list", "range"),
    "data.flip_horizontal": FRACTION,
    "data.flip_vertical": FRACTION,
    "data.augment.photometric": FRACTION,
    "data.augment.brightness": NOT_NEGATIVE,
    "data.augment.contrast": FRACTION,
    "data.augment.saturation": FRACTION,
    "data.augment.hue": NOT_NEGATIVE,
    "data.augment.expand": FRACTION,
    "data.augment.expand_ratio": Rule(lambda v: _is_number(v) and v >= 1, "a number from 1"),
    "data.augment.crop": _one_of("none", "random", "min_iou", "center", "jitter"),
    "data.augment.crop_probability": FRACTION,
    "data.augment.crop_size": PARTS,
    "data.augment.crop_min_ious": Rule(
        lambda v: _is_tuple_of(v, _is_part) and v != (), "a tuple of numbers from 0 to 1"
    ),
    "data.augment.crop_side": _integer(1),
    "data.augment.crop_scales": Rule(
        lambda v: _is_tuple_of(v, lambda x: _is_number(x) and x > 0) and v != (),
        "a tuple of numbers above 0",
    ),
    "data.augment.crop_border": _integer(0),
    "data.augment.crop_jitter": Rule(
        lambda v: _is_number(v) and 0 <= v < 0.5, "a number from 0 to below 0.5"
    ),
    "data.augment.mosaic": FRACTION,
    "data.augment.mosaic_nine": FRACTION,
    "data.augment.affine": FRACTION,
    "data.augment.affine_degrees": NOT_NEGATIVE,
    "data.augment.affine_translate": FRACTION,
    "data.augment.affine_scale": BELOW_ONE,
    "data.augment.affine_shear": Rule(
        lambda v: _is_number(v) and 0 <= v < 45, "a number from 0 to below 45"
    ),
    "data.augment.affine_perspective": NOT_NEGATIVE,
    "data.augment.box_min_side": NOT_NEGATIVE,
    "data.augment.box_min_part": BELOW_ONE,
    "data.augment.box_max_ratio": Rule(lambda v: _is_number(v) and v > 1, "a number above 1"),
    "data.augment.mixup": FRACTION,
    "data.augment.mixup_beta": POSITIVE,
    "data.augment.hsv": FRACTION,
    "data.augment.hsv_gains": Rule(
        lambda v: _is_tuple_of(v, lambda x: _is_number(x) and x >= 0, 3),
        "three numbers, at least 0, such as (0.015, 0.7, 0.4)",
    ),
    "data.augment.hsv_form": _one_of("yolov5", "darknet"),
    "data.augment.cutout": FRACTION,
    "data.augment.cutout_holes": Rule(
        lambda v: _is_tuple_of(v, _is_integer, 2) and 1 <= v[0] <= v[1],
        "(least, largest) number of holes, at least 1",
    ),
    "data.augment.cutout_size": PARTS,
    "data.pad_value": Rule(
        lambda v: _is_colour(v) or _is_tuple_of(v, _is_colour, 3),
        "an integer from 0 to 255, or three of them, such as (124, 116, 104)",
    ),
    "data.max_boxes": _integer(1),
    "data.min_side": _integer(0),
    "data.min_object": _integer(0),
    "data.skip_broken": FLAG,
    "data.eval_skip_broken": FLAG,
    "data.read_threads": _integer(0),
    "data.workers": _integer(0),
    "train.batch_size": _integer(1),
    "train.accumulate": _integer(1),
    "train.epochs": _integer(0),
    "train.steps": _integer(0),
    "train.log_every": _integer(1),
    "train.eval_every": _integer(0),
    "train.checkpoint_every": _integer(0),
    "train.keep_last": _integer(1),
    "optim.name": _one_of("sgd", "adamw"),
    "optim.lr": POSITIVE,
    "optim.lr_batch_size": _integer(0),
    "optim.momentum": BELOW_ONE,
    "optim.nesterov": FLAG,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.no_decay": REGEXES,
    "optim.freeze": REGEXES,
    "optim.clip_norm": NOT_NEGATIVE,
    "optim.schedule": _one_of("step", "cosine", "linear", "constant"),
    "optim.milestones": Rule(
        _is_increasing, "a tuple of increasing numbers above 0, such as (8, 11)"
    ),
    "optim.milestone_factor": POSITIVE,
    "optim.warmup_steps": _integer(0),
    "optim.warmup_factor": FRACTION,
    "optim.warmup_power": POSITIVE,
    "optim.warmup_momentum": BELOW_ONE,
    "optim.warmup_bias_lr": NOT_NEGATIVE,
    "optim.biases": REGEXES,
    "optim.decay_from": _one_of("warmup", "start"),
    "optim.final_factor": FRACTION,
    "optim.ema_decay": BELOW_ONE,
    "optim.ema_warmup": _integer(0),
    "eval.batch_size": _integer(1),
    "eval.best_by": _one_of("AP", "AP50", "AP75", "mAP07", "mAP12"),
    "eval.views": Rule(
        lambda v: _is_tuple_of(v, lambda name: name in VIEWS) and len(set(v)) == len(v) > 0,
        f"a tuple of one or more of {', '.join(VIEWS)}",
    ),
    "eval.rectangles": _integer(0),
    "eval.pictures": _integer(0),
    "eval.threshold": FRACTION,
    "predict.threshold": FRACTION,
    "predict.top_k": _integer(1),
    "predict.rectangles": _integer(0),
    "predict.shrink": SHRINK,
}


def check_config(config: config_dict.ConfigDict) -> None:
    """Rejects keys and values that would fail late, have no effect, or raise an unclear error.

    Raises:
      UserError: a key is unknown or missing, or a value breaks its rule.
    """
    model = config.get("model")
    if not hasattr(model, "items"):
        raise errors.UserError(
            f"config.model is {model!r}; it must be a ConfigDict of the detector's fields."
        )
    values = _flat({key: config[key] for key in config if key != "model"})
    values = {k: v for k, v in values.items() if not k.startswith("predict.model.")}
    for key in values:
        if key not in RULES:
            raise errors.UserError(f"config.{key} is not a known key.{suggestion(key)}")
    for key, rule in RULES.items():
        if key not in values:
            raise errors.UserError(
                f"config.{key} is missing; start the config from experiments.common.base."
            )
        if not rule.fits(values[key]):
            raise errors.UserError(f"config.{key} is {values[key]!r}; it must be {rule.words}.")
    for changes in config.data.train_also:
        for key, value in changes.items():
            rule = RULES.get(f"data.{key}")  # opening the source rejects unknown keys
            if rule and not rule.fits(value):
                raise errors.UserError(
                    f"config.data.train_also has {key!r}: {value!r}; it must be {rule.words}."
                )
    epochs, steps = config.train.epochs, config.train.steps
    if epochs and steps:
        raise errors.UserError(
            f"config.train.epochs is {epochs} and config.train.steps is {steps}; set one of them"
            " to 0."
        )
    if not epochs and not steps:
        raise errors.UserError(
            "config.train.epochs and config.train.steps are both 0; set one to the length of the"
            " run."
        )
    for key in ("size_limits", "multiscale_limits"):
        if config.data[key] and config.data.resize != "fit":
            raise errors.UserError(
                f"config.data.{key} is {config.data[key]}, which needs config.data.resize=fit;"
                " change resize, or set the limits to ()."
            )
    for block in ("eval", "predict"):
        rectangles = config[block].rectangles
        if rectangles and config.data.resize == "stretch":
            raise errors.UserError(
                f"config.{block}.rectangles is {rectangles}, which has no effect with"
                " config.data.resize=stretch; change resize, or set rectangles to 0."
            )
    for canvases in config.data.multiscale_canvases:
        if len(canvases) != len(config.data.canvases):
            raise errors.UserError(
                f"config.data.multiscale_canvases has the alternative {canvases}; each must have"
                f" as many canvases as config.data.canvases, {len(config.data.canvases)}."
            )
    if config.data.multiscale == "range" and len(config.data.multiscale_limits) < 2:
        raise errors.UserError(
            "config.data.multiscale=range samples between config.data.multiscale_limits, which has"
            f" {len(config.data.multiscale_limits)} entries; give two or more."
        )
    augment = config.data.augment
    gains = augment.hsv_gains
    if augment.hsv_form == "darknet" and min(gains[1:]) < 1:
        raise errors.UserError(
            f"config.data.augment.hsv_gains is {gains}; with hsv_form=darknet the last two are the"
            " largest factors of saturation and value, so they must be at least 1."
        )
    if augment.hsv_form == "yolov5" and max(gains) > 1:
        raise errors.UserError(
            f"config.data.augment.hsv_gains is {gains}; with hsv_form=yolov5 factors range from"
            " 1 - gain to 1 + gain, so each gain must be at most 1."
        )
    alternatives = config.data.multiscale_canvases or (config.data.canvases,)
    for long, short in config.data.multiscale_limits:
        for canvas in {canvas for canvases in alternatives for canvas in canvases}:
            if long > max(canvas) or short > min(canvas):
                raise errors.UserError(
                    f"config.data.multiscale_limits has {(long, short)}, which does not fit the"
                    f" canvas {canvas}; lower the limit or enlarge the canvas."
                )
    if config.train.batch_size % config.train.accumulate:
        raise errors.UserError(
            f"config.train.batch_size is {config.train.batch_size}; it must be a multiple of"
            f" config.train.accumulate, {config.train.accumulate}."
        )
    if config.optim.warmup_momentum and config.optim.name != "sgd":
        raise errors.UserError(
            f"config.optim.warmup_momentum is {config.optim.warmup_momentum}, which needs"
            " config.optim.name=sgd; set it to 0."
        )
    for key in ("warmup_momentum", "warmup_bias_lr"):
        if config.optim[key] and not config.optim.warmup_steps:
            raise errors.UserError(
                f"config.optim.{key} is {config.optim[key]}, which has no effect while"
                f" config.optim.warmup_steps is 0; set warmup_steps above 0 or {key} to 0."
            )
    if config.optim.ema_warmup and not config.optim.ema_decay:
        raise errors.UserError(
            f"config.optim.ema_warmup is {config.optim.ema_warmup}, which has no effect while"
            " config.optim.ema_decay is 0; set ema_decay above 0 or ema_warmup to 0."
        )


def suggestion(name: str) -> str:
    """The text " Did you mean 'lr'?" if a dotted key or a part of one resembles `name`, else ""."""
    known = {"model", *RULES}
    for key in RULES:
        known.update(key.split("."))
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if hasattr(value, "items"):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

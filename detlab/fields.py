"""Rules for the fields of detectors, applied by the `check()` of each module.

A rule is (name of the field, whether its value is valid, what it must be in words).  A field
shared by several detectors has the same name in all of them; its rule is here, in `shared`.
"""

import itertools
from collections.abc import Iterable
from typing import Any


def check(module: Any, rules: Iterable[tuple[str, bool, str]] = ()) -> None:
    """Raises ValueError for the first broken rule; the message starts with the field's name.

    Args:
      module: the detector with the fields.
      rules: for the detector's own fields, checked after the `shared` ones.
    """
    for field, fits, words in (*shared(module), *rules):
        if not fits:
            raise ValueError(f"{field} is {getattr(module, field)!r}; it must be {words}")


def shared(module: Any) -> tuple:
    """Rules for the module's fields that several detectors share.

    Every detector has `pixel_mean`, `pixel_std` and `dtype`.
    """

    def those(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in module.__dataclass_fields__)

    rules = (
        *at_least(module, 1, *those("num_classes", "neck_width", "head_width")),
        *at_least(module, 0, *those("head_convs")),
        *between_0_and_1(module, *those("prior_probability")),
        *fractions(module, *those("focal_alpha")),
        *at_least(module, 0, *those("focal_gamma", "box_weight")),
        *above(module, 0, *those("summed_images")),
        *at_least(module, 1, *those("candidates_per_level", "num_candidates", "max_detections")),
        *fractions(module, *those("score_threshold", "nms_iou")),
        ("pixel_mean", numbers(module.pixel_mean, 3), "three numbers"),
        ("pixel_std", positive(module.pixel_std, 3), "three numbers above 0"),
        one_of(module, "dtype", ("float32", "bfloat16", "float16")),
    )
    if those("aspect_ratios"):
        right = positive(module.aspect_ratios)
        rules += (("aspect_ratios", right, "one or more numbers above 0"),)
    if those("delta_stds"):
        rules += (("delta_stds", positive(module.delta_stds, 4), "four numbers above 0"),)
    if those("positive_iou"):
        high = module.positive_iou
        rules += (("positive_iou", 0 < high <= 1, "above 0 and at most 1"),)
    if those("negative_iou"):
        low, high = module.negative_iou, module.positive_iou
        rules += (("negative_iou", 0 <= low <= high, "from 0 to positive_iou"),)
    return rules


def numbers(
    values: Any, length: int | None = None, kind: type | tuple[type, ...] = (int, float)
) -> bool:
    """Whether `values` is a non-empty tuple of numbers, with `length` of them if it is given."""
    if not isinstance(values, tuple) or not values or length not in (None, len(values)):
        return False
    return all(isinstance(v, kind) for v in values)


def positive(
    values: Any, length: int | None = None, kind: type | tuple[type, ...] = (int, float)
) -> bool:
    """Whether `values` passes `numbers` and each of them is above 0."""
    return numbers(values, length, kind) and min(values) > 0


def sizes(levels: Any, length: int) -> bool:
    """Whether `levels` holds `length` tuples with equally many pairs (width, height) above 0."""
    if not isinstance(levels, tuple) or len(levels) != length:
        return False
    if not all(isinstance(level, tuple) and level for level in levels):
        return False
    pairs = [pair for level in levels for pair in level]
    same = len({len(level) for level in levels}) == 1
    return same and all(positive(pair, 2) for pair in pairs)


def at_least(module: Any, low: float, *names: str) -> tuple:
    """Rules for fields that must be at least `low`."""
    return tuple((name, getattr(module, name) >= low, f"at least {low}") for name in names)


def above(module: Any, low: float, *names: str) -> tuple:
    """Rules for fields that must be above `low`."""
    return tuple((name, getattr(module, name) > low, f"above {low}") for name in names)


def fractions(module: Any, *names: str) -> tuple:
    """Rules for fields that must be from 0 to 1, both included."""
    return tuple((name, 0 <= getattr(module, name) <= 1, "from 0 to 1") for name in names)


def between_0_and_1(module: Any, *names: str) -> tuple:
    """Rules for fields that must be above 0 and below 1."""
    return tuple((name, 0 < getattr(module, name) < 1, "between 0 and 1") for name in names)


def one_of(module: Any, name: str, values: Iterable) -> tuple:
    """The rule for a field that must be one of `values`."""
    values = tuple(values)
    return (name, getattr(module, name) in values, f"one of {', '.join(map(str, values))}")


def of_strides(module: Any, first: int, least_levels: int = 1) -> tuple:
    """The rule for `strides`: the first is `first`, and each is twice the one before."""
    strides = tuple(module.strides)
    doubling = strides == tuple(first * 2**i for i in range(len(strides)))
    named = ", ".join(str(first * 2**i) for i in range(max(3, least_levels)))
    words = f"{named} and so on, one for each level from P{first.bit_length() - 1} up"
    if least_levels > 1:
        words += f", at least {least_levels} of them"
    return ("strides", doubling and len(strides) >= least_levels, words)


def of_norm_groups(module: Any) -> tuple:
    """The rule for the `norm_groups` of a head, which divide its width if `norm` is "group"."""
    width, grouped = module.head_width, getattr(module, "norm", "group") == "group"
    fits = not grouped or (module.norm_groups >= 1 and width % module.norm_groups == 0)
    return ("norm_groups", fits, f"a divisor of head_width, {width}")


def of_level_limits(module: Any) -> tuple:
    """The rule for `level_limits`, the distances at which one level ends and the next begins."""
    limits, count = module.level_limits, len(module.strides) - 1
    rising = all(low < high for low, high in itertools.pairwise((0, *limits)))
    return ("level_limits", rising and len(limits) == count, f"{count} rising numbers above 0")


def of_guided_anchors(module: Any, width: str) -> tuple:
    """Rules for the fields of guided anchors; `width` is the field of the adapted features'."""
    channels, groups = getattr(module, width), module.deform_groups
    split = groups >= 1 and channels % groups == 0
    low, high = module.shape_negative_iou, module.shape_positive_iou
    middle, region = module.center_ratio, module.ignore_ratio
    return (
        ("deform_groups", split, f"a divisor of {width}, {channels}"),
        *at_least(module, 1, "scales_per_octave", "shape_samples"),
        *above(module, 0, "bounded_iou_beta"),
        ("shape_stds", positive(module.shape_stds, 2), "two numbers above 0"),
        *between_0_and_1(module, "center_ratio"),
        ("ignore_ratio", middle <= region <= 1, "from center_ratio to 1"),
        ("shape_positive_iou", 0 < high <= 1, "above 0 and at most 1"),
        ("shape_negative_iou", 0 <= low <= high, "from 0 to shape_positive_iou"),
        *fractions(module, "shape_min_positive_iou", "shape_positive_fraction"),
        *fractions(module, "location_threshold"),
        *at_least(module, 0, "location_weight", "shape_weight"),
    )


def of_resnet(module: Any, depths: Iterable[int], norms: Iterable[str]) -> tuple:
    """Rules for the fields that a detector passes to its ResNet."""
    stages, norm, width = module.backbone_stages, module.backbone_norm, module.backbone_width
    divisible = norm != "group" or width % 32 == 0  # every width is a multiple of the first
    return (
        one_of(module, "depth", depths),
        ("style", module.style in ("pytorch", "caffe"), "pytorch or caffe"),
        one_of(module, "backbone_norm", norms),
        ("frozen_stages", 0 <= module.frozen_stages <= 4, "from 0 to 4"),
        *at_least(module, 1, "backbone_width"),
        ("backbone_width", divisible, "divisible by 32 when backbone_norm is group"),
        (
            "backbone_stages",
            stages is None or positive(stages, 4, int),
            "four block counts above 0",
        ),
    )

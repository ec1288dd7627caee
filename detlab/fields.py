"""What the fields of a detector must hold: the rules that the `check()` of its module states.

A rule is (name of the field, whether its value is right, what it must be in words).
"""

from typing import Any, Iterable


def check(module: Any, rules: Iterable[tuple[str, bool, str]]) -> None:
    """Raises ValueError for the first rule that is broken, with a sentence that begins with it.

    Args:
      module: has the fields.
      rules: see above.
    """
    for field, fits, words in rules:
        if not fits:
            raise ValueError(f"{field} is {getattr(module, field)!r}; it must be {words}")


def numbers(values: Any, length: int | None = None, kind=(int, float)) -> bool:
    """Whether values is a tuple of one or more numbers, `length` of them where it is given."""
    if not isinstance(values, tuple) or not values or length not in (None, len(values)):
        return False
    return all(isinstance(v, kind) for v in values)


def positive(values: Any, length: int | None = None, kind=(int, float)) -> bool:
    """Whether they are `numbers` above 0."""
    return numbers(values, length, kind) and min(values) > 0


def sizes(levels: Any, length: int) -> bool:
    """Whether levels is a tuple of that many, each of as many pairs (width, height) above 0."""
    if not isinstance(levels, tuple) or len(levels) != length:
        return False
    if not all(isinstance(level, tuple) and level for level in levels):
        return False
    pairs = [pair for level in levels for pair in level]
    same = len({len(level) for level in levels}) == 1
    return same and all(positive(pair, 2) for pair in pairs)


def at_least(module: Any, low: float, *names: str) -> tuple:
    """Rules of fields that are numbers from `low` on."""
    return tuple((name, getattr(module, name) >= low, f"at least {low}") for name in names)


def above(module: Any, low: float, *names: str) -> tuple:
    """Rules of fields that are numbers above `low`."""
    return tuple((name, getattr(module, name) > low, f"above {low}") for name in names)


def fractions(module: Any, *names: str) -> tuple:
    """Rules of fields from 0 to 1, both included."""
    return tuple((name, 0 <= getattr(module, name) <= 1, "0 to 1") for name in names)


def between_0_and_1(module: Any, *names: str) -> tuple:
    """Rules of fields above 0 and below 1."""
    return tuple((name, 0 < getattr(module, name) < 1, "between 0 and 1") for name in names)


def one_of(module: Any, name: str, values: Iterable) -> tuple:
    """The rule of a field that is one of some values."""
    values = tuple(values)
    return (name, getattr(module, name) in values, f"one of {', '.join(map(str, values))}")


def of_strides(module: Any, first: int, least_levels: int = 1) -> tuple:
    """The rule of `strides`: each twice the one before, from the first on."""
    strides = tuple(module.strides)
    doubling = strides == tuple(first * 2**i for i in range(len(strides)))
    level = first.bit_length() - 1
    words = f"{first}, {2 * first}, {4 * first} and so on, those of P{level} upward"
    return ("strides", doubling and len(strides) >= least_levels, words)


def of_max_iou(module: Any) -> tuple:
    """Rules of the two thresholds of `assign.max_iou`."""
    low, high = module.negative_iou, module.positive_iou
    return (
        ("positive_iou", 0 < high <= 1, "above 0 and at most 1"),
        ("negative_iou", 0 <= low <= high, "0 to positive_iou"),
    )


def of_focal_loss(module: Any) -> tuple:
    """Rules of the two fields of the focal loss."""
    return (*fractions(module, "focal_alpha"), *at_least(module, 0, "focal_gamma"))


def of_dense_head(module: Any) -> tuple:
    """Rules of the fields of a head of one stage that all levels from P3 on share."""
    return (
        *at_least(module, 1, "num_classes", "neck_width", "head_width", "candidates_per_level"),
        *at_least(module, 0, "head_convs"),
        *between_0_and_1(module, "prior_probability"),
        of_strides(module, first=8),
    )


def of_suppression(module: Any) -> tuple:
    """Rules of the fields that every detector with greedy suppression has."""
    return (
        *fractions(module, "score_threshold", "nms_iou"),
        *at_least(module, 1, "max_detections"),
    )


def of_input(module: Any) -> tuple:
    """Rules of the fields that say how pixels become numbers, and of which kind."""
    return (
        ("pixel_mean", numbers(module.pixel_mean, 3), "three numbers"),
        ("pixel_std", positive(module.pixel_std, 3), "three numbers above 0"),
        one_of(module, "dtype", ("float32", "bfloat16", "float16")),
    )


def of_resnet(module: Any, depths: Iterable[int], norms: Iterable[str]) -> tuple:
    """Rules of the fields that a detector hands on to its ResNet of one of these depths, norms."""
    stages, norm, width = module.backbone_stages, module.backbone_norm, module.backbone_width
    divisible = norm != "group" or width % 32 == 0  # every width is a multiple of the first
    return (
        one_of(module, "depth", depths),
        ("style", module.style in ("pytorch", "caffe"), "pytorch or caffe"),
        one_of(module, "backbone_norm", norms),
        ("frozen_stages", 0 <= module.frozen_stages <= 4, "0 to 4"),
        *at_least(module, 1, "backbone_width"),
        ("backbone_width", divisible, "divisible by 32 where backbone_norm is group"),
        ("backbone_stages", stages is None or positive(stages, 4, int), "four block counts"),
    )

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


def of_suppression(module: Any) -> tuple:
    """Rules of the fields that every detector with greedy suppression has."""
    return (
        ("score_threshold", 0 <= module.score_threshold <= 1, "0 to 1"),
        ("nms_iou", 0 <= module.nms_iou <= 1, "0 to 1"),
        ("max_detections", module.max_detections >= 1, "at least 1"),
    )


def of_input(module: Any) -> tuple:
    """Rules of the fields that say how pixels become numbers, and of which kind."""
    kinds = ("float32", "bfloat16", "float16")
    return (
        ("pixel_mean", numbers(module.pixel_mean, 3), "three numbers"),
        ("pixel_std", positive(module.pixel_std, 3), "three numbers above 0"),
        ("dtype", module.dtype in kinds, f"one of {', '.join(kinds)}"),
    )


def of_resnet(module: Any, depths: Iterable[int], norms: Iterable[str]) -> tuple:
    """Rules of the fields that a detector hands on to its ResNet of one of these depths, norms."""
    stages, norm, width = module.backbone_stages, module.backbone_norm, module.backbone_width
    divisible = norm != "group" or width % 32 == 0  # every width is a multiple of the first
    return (
        ("depth", module.depth in depths, f"one of {', '.join(map(str, depths))}"),
        ("style", module.style in ("pytorch", "caffe"), "pytorch or caffe"),
        ("backbone_norm", norm in norms, f"one of {', '.join(norms)}"),
        ("frozen_stages", 0 <= module.frozen_stages <= 4, "0 to 4"),
        ("backbone_width", width >= 1, "at least 1"),
        ("backbone_width", divisible, "divisible by 32 where backbone_norm is group"),
        ("backbone_stages", stages is None or positive(stages, 4, int), "four block counts"),
    )

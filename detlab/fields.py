"""What the fields of a detector must hold: the rules that the `check()` of its module states."""

from typing import Any, Iterable


def check(module: Any, rules: Iterable[tuple[str, bool, str]]) -> None:
    """Raises ValueError for the first rule that is broken, with a sentence that begins with it.

    Args:
      module: has the fields.
      rules: (name of the field, whether its value is right, what it must be in words).
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

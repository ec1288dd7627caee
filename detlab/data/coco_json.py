"""The entries of COCO's JSON: reading a file, and what each entry must have.

Numbers are as pandas and other writers leave them: a whole float is the integer that it equals,
and null or NaN in a flag or an area is a value that is not given.  Ids may be text.
"""

import collections
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from detlab import text as text_lib
from detlab.data import names as names_lib
from detlab.data import records as records_lib


def read(file: Any) -> dict[str, list]:
    """The content of an annotation file, checked for the three lists that it must have.

    Raises:
      DataError: the file cannot be read, is no text or no JSON, or lacks a list.
    """
    try:
        content = text_lib.read(file)
    except OSError as error:
        raise records_lib.DataError(
            f"annotation file {file} cannot be read ({error.strerror}); give the path of an "
            "instances_*.json"
        ) from error
    except ValueError as error:
        raise records_lib.DataError(f"annotation file {file} {error}") from error
    if not content.strip():
        raise records_lib.DataError(
            f"annotation file {file} is empty; give an instances_*.json in COCO format"
        )
    try:
        content = json.loads(content)
    except (ValueError, RecursionError) as error:  # bad JSON or deep nesting
        raise records_lib.DataError(
            f"annotation file {file} is not valid JSON ({error}); correct it or download it again"
        ) from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise records_lib.DataError(
                f"annotation file {file} has no list {name!r}; give an instances_*.json in COCO "
                "format"
            )
    return content


def whole(value: Any) -> Any:
    """A whole float as the integer that it equals; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def given(value: Any) -> bool:
    """Whether a value is neither null nor NaN."""
    return value is not None and value == value


# ------------------------------------------------------------------------------------------------
# Categories


class Categories(NamedTuple):
    """The classes of a file."""

    name_of: dict[int | str, str]  # category id -> class name, numbers in ascending order first
    left_out: tuple[int | str, ...]  # ids without objects whose name another category has
    problems: tuple[str, ...]


def categories(content: dict[str, list], file: Any) -> Categories:
    """The categories of a file.

    Of several with one name, those without objects are left out, as Roboflow writes a group with
    the name of its only class; those with objects are one class.

    Raises:
      DataError: there is no category, one is unusable (skipping it would shift all labels), or an
        id has two names.
    """
    name_of = {}
    for number, category in enumerate(content["categories"]):
        found = fault(category, _CATEGORY)
        if found:
            raise records_lib.DataError(
                f"annotation file {file}: entry {number} of 'categories' {found}; correct the file"
            )
        category_id, name = whole(category["id"]), names_lib.normal(str(whole(category["name"])))
        if name_of.setdefault(category_id, name) != name:
            raise records_lib.DataError(
                f"annotation file {file} gives the category id {category_id!r} to two classes, "
                f"{name_of[category_id]} and {name}; give each its own id"
            )
    if not name_of:
        raise records_lib.DataError(
            f"annotation file {file} has no categories; give an instances_*.json in COCO format"
        )
    order = sorted(name_of, key=lambda key: (isinstance(key, str), key))
    name_of = {key: name_of[key] for key in order}
    ids = collections.defaultdict(list)  # of each name
    for category_id, name in name_of.items():
        ids[name].append(category_id)
    doubled = {name: of_name for name, of_name in ids.items() if len(of_name) > 1}
    if not doubled:
        return Categories(name_of, (), ())

    count = collections.Counter(
        annotation["category_id"]
        for annotation in content["annotations"]
        if isinstance(annotation, dict) and _is_id(whole(annotation.get("category_id")))
    )
    left_out, joined = [], []
    for name, of_name in doubled.items():
        # A name without any object keeps its last category: groups come first.
        kept = [key for key in of_name if count[key]] or of_name[-1:]
        left_out += [key for key in of_name if key not in kept]
        if len(kept) > 1:
            parts = ", ".join(f"{key!r} (objects: {count[key]})" for key in kept)
            joined.append(f"categories of the name {name} are one class: {parts}")
    if left_out:
        names = text_lib.listed(f"{key!r} ({name_of[key]})" for key in left_out)
        joined.append(
            f"categories without objects whose name another has are left out: {len(left_out)}, "
            f"{names}"
        )
    kept = {key: name for key, name in name_of.items() if key not in left_out}
    return Categories(kept, tuple(left_out), tuple(joined))


def category_ids(labels: dict[int | str, int], num_classes: int) -> tuple[int | str | None, ...]:
    """The first category id of each class; None if it has none.

    Args:
      labels: {category id: label, or -1}.
    """
    first = {label: key for key, label in reversed(labels.items())}
    return tuple(first.get(label) for label in range(num_classes))


# ------------------------------------------------------------------------------------------------
# Flags


class Flags:
    """Reads the flags of objects by which data sets mark what is neither learnt nor counted.

    `iscrowd` is COCO's own.  Others are found by their names, whatever their case and
    underscores, in the entry itself and in its `attributes` and `extra`.
    """

    def __init__(self):
        self._kinds = {}  # key -> its kind
        self._ignored = collections.Counter()  # key -> number of objects
        self._learnt = collections.Counter()
        self._unread = collections.Counter()

    def ignores(self, annotation: dict[str, Any]) -> bool:
        """Whether the object of an entry is ignored; counts its flags."""
        ignored = False
        for key, value in self._items(annotation):
            kind = self._kinds.get(key)
            if kind is None:
                kind = self._kinds[key] = _kind_of_flag(key)
            if kind == "none":
                continue
            is_set = flag(value)
            if is_set is None:
                self._unread[key] += 1
            elif is_set and kind == "ignored":
                ignored = True
                self._ignored[key] += 1
            elif is_set:
                self._learnt[key] += 1
        return ignored

    @property
    def problems(self) -> list[str]:
        """A sentence for each key other than `iscrowd` that marked objects."""
        ignored = {k: n for k, n in self._ignored.items() if k != "iscrowd"}
        return [
            *(f"objects marked {k!r} are ignored as crowds are: {n}" for k, n in ignored.items()),
            *(
                f"objects marked {k!r} are used like all others: {n}"
                for k, n in self._learnt.items()
            ),
            *(
                f"objects whose {k!r} is neither 0 nor 1 are used like all others: {n}"
                for k, n in self._unread.items()
            ),
        ]

    def _items(self, annotation: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        yield from annotation.items()
        for name in ("attributes", "extra"):
            if isinstance(annotation.get(name), dict):
                yield from annotation[name].items()


_IGNORED = ("crowd", "ignore", "ignored", "difficult", "invalid", "dontcare", "groupof")
_LEARNT = ("fake", "reflected", "depiction", "uncertain", "hard", "outside")


def _kind_of_flag(key):
    name = key.lower().replace("_", "").replace("-", "").removeprefix("is")
    return "ignored" if name in _IGNORED else "learnt" if name in _LEARNT else "none"


def flag(value: Any) -> bool | None:
    """The value of a flag; None if it is none.  Null and NaN are False."""
    if isinstance(value, str):
        return {"": False, "0": False, "false": False, "1": True, "true": True}.get(value.lower())
    if not given(value):
        return False
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else None


# ------------------------------------------------------------------------------------------------
# Conditions on values


class _Kind(NamedTuple):
    """A condition on a value of an entry, and its wording in messages."""

    words: str
    fits: Callable[[Any], bool]


def _is_id(value):
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value):
    # 1e30 also excludes numbers that float32 cannot hold; comparisons with NaN are False.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_box(value):
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_name(value):
    return (isinstance(value, str) and value != "") or _is_number(value)


_TEXT = _Kind("a non-empty string", lambda value: isinstance(value, str) and value != "")
_NAME = _Kind("a non-empty string", _is_name)
_ID = _Kind("an integer or a string", lambda value: _is_id(whole(value)))
_SIDE = _Kind("a number of at least 1", lambda v: _is_number(v) and 1 <= v < 2**31)
_BOX = _Kind("a list of 4 finite numbers: x, y, width, height", _is_box)
_SCORE = _Kind("a finite number", _is_number)
_AREA = _Kind("a finite number", lambda value: not given(value) or _is_number(value))
_FLAG = _Kind("0 or 1", lambda value: flag(value) is not None)

IMAGE = {"id": _ID, "file_name": _TEXT}
SIZE = {"height": _SIDE, "width": _SIDE}  # of an image; if it lacks them, its file has them
OBJECT = {"image_id": _ID, "category_id": _ID, "bbox": _BOX}
OPTIONAL = {"area": _AREA, "iscrowd": _FLAG}  # of an object
RESULT = OBJECT | {"score": _SCORE}  # an entry of a results file
_CATEGORY = {"id": _ID, "name": _NAME}


def fault(entry: Any, kinds: dict[str, _Kind]) -> str:
    """What is wrong with an entry, in words that follow its name; "" if nothing is."""
    if not isinstance(entry, dict):
        return f"is {_short(entry)}, which is not a JSON object"
    for key, kind in kinds.items():
        if key not in entry:
            return f"has no {key!r}"
        if not kind.fits(entry[key]):
            return f"has the {key} {_short(entry[key])}, which is not {kind.words}"
    return ""


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown_id(value: int | str, known: Iterable[int | str]) -> str:
    """A hint for an id that is not among the `known` ones, if it is there as the other type."""
    other = str(value) if isinstance(value, int) else int(value) if value.isdecimal() else None
    if other is None or other not in known:
        return ""
    return f" ({other!r} is there; write both as numbers or both as text)"

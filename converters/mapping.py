r"""The conversion engine: named tensors -> a detector's parameter tree, strictly, and back.

A table is data: rules that say where each foreign tensor goes and which pure functions bring it
into detlab's layout.  Nothing is skipped silently in the subtrees that a table names: every source
name matches one rule or is listed as dropped, every leaf is filled once, and shapes agree.

Source names are regexes made of literal text, `\.` and groups that are not nested; a target refers
to the groups as `\1`, `\2`.  This is why a rule can also run backwards.
"""

import collections
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from detlab import errors
from detlab.converters.readers import contents

# Only this many names get a near miss: with more, the file is another model, not a misspelt one.
_MAX_SUGGESTIONS = 20
_MAX_CANDIDATES = 5000


class ConversionError(errors.UserError):
    """The tensors do not fit the detector; the message lists every difference.

    `class_shapes` has the leaves whose number of classes may differ: path -> (shape of the file in
    detlab's layout, shape of the detector).  `only_classes`: nothing else differs.
    """

    def __init__(self, message: str, class_shapes: Mapping | None = None, only_classes=False):
        super().__init__(message)
        self.class_shapes = dict(class_shapes or {})
        self.only_classes = only_classes


class Transform(NamedTuple):
    """A pure function of one array and its inverse."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """Where tensors with matching names go, and how they are transformed."""

    source: str  # regex of the whole name, see the file's docstring
    target: str  # path such as r"params/backbone/stage\1_block\2/conv1/conv/kernel"
    transforms: tuple[str, ...] = ("identity",)  # keys of TRANSFORMS, in order of application


class Dropped(NamedTuple):
    """Tensors that detlab has no place for."""

    source: str  # regex of the whole name
    reason: str


class Table(NamedTuple):
    """How the names of one source map to the subtrees of a detector."""

    name: str
    subtrees: tuple[str, ...]  # paths such as "params/backbone" that are filled completely
    rules: tuple[Rule, ...]
    dropped: tuple[Dropped, ...]
    class_leaves: tuple[str, ...] = ()  # regexes of leaves that depend on the number of classes


class Row(NamedTuple):
    """The outcome for one tensor of the file or one leaf of the detector."""

    source: str
    target: str
    shape: tuple[int, ...]
    mean: float | None  # of the converted values; None if nothing was converted
    std: float | None
    status: str  # "matched", "dropped: <reason>", "left initialised" or ANEW


# COCO's category ids that no object has; torchvision's detectors predict them too.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_USED_IDS = [i for i in range(1, 91) if i not in _UNUSED_IDS]


def _from_torchvision_classes(anchors: int, x: np.ndarray) -> np.ndarray:
    """[A * K, ...] with the background first -> last; of COCO's 91 ids, the 80 classes in use."""
    x = x.reshape(anchors, -1, *x.shape[1:])
    order = [*_USED_IDS, 0] if x.shape[1] == 91 else [*range(1, x.shape[1]), 0]
    return x[:, order].reshape(-1, *x.shape[2:])


def _to_torchvision_classes(anchors: int, x: np.ndarray) -> np.ndarray:
    """The inverse; ids that are not in use are never predicted: 0 in kernels, -1e4 in biases."""
    x = x.reshape(anchors, -1, *x.shape[1:])
    if x.shape[1] == 81:
        new = np.full((anchors, 91, *x.shape[2:]), 0.0 if x.ndim > 2 else -1e4, x.dtype)
        new[:, [*_USED_IDS, 0]] = x
    else:
        new = np.roll(x, 1, axis=1)
    return new.reshape(-1, *x.shape[2:])


ANEW = "initialised anew"  # status of a leaf of the table whose tensor is for other classes


TRANSFORMS = {
    "identity": Transform(lambda x: x, lambda x: x),
    "conv_oihw_to_hwio": Transform(
        lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    # A transposed convolution along one axis: [in, out, position] -> [position, in, out].
    "conv_transpose_iok_to_kio": Transform(
        lambda x: x.transpose(2, 0, 1), lambda x: x.transpose(1, 2, 0)
    ),
    "linear_t": Transform(lambda x: x.T, lambda x: x.T),  # [out, in] -> [in, out]
    # A linear layer on flattened 7x7 maps: [out, channel * row * column] -> [out, row * column *
    # channel], before `linear_t`.
    "chw_to_hwc_7x7": Transform(
        lambda x: x.reshape(len(x), -1, 7, 7).transpose(0, 2, 3, 1).reshape(len(x), -1),
        lambda x: x.reshape(len(x), 7, 7, -1).transpose(0, 3, 1, 2).reshape(len(x), -1),
    ),
    # The class scores of an SSD of torchvision, for 4 or 6 anchors of a cell.
    **{
        f"torchvision_classes_{anchors}": Transform(
            functools.partial(_from_torchvision_classes, anchors),
            functools.partial(_to_torchvision_classes, anchors),
        )
        for anchors in (4, 6)
    },
    # Input channels of an OIHW convolution, BGR -> RGB.
    "flip_bgr_in": Transform(lambda x: x[:, ::-1], lambda x: x[:, ::-1]),
}


def convert(
    tensors: Mapping[str, np.ndarray],
    table: Table,
    target_shapes: Mapping[str, tuple[int, ...]],
    reset_classes: bool = False,
) -> tuple[dict, list[Row]]:
    """Fills the table's subtrees from named tensors.

    Args:
      tensors: source name -> array, in the source's layouts.
      table: the rules.
      target_shapes: path such as "params/backbone/stem/conv/kernel" -> shape, for all leaves of
        the detector.
      reset_classes: drop whatever the file has for the table's `class_leaves`.
    Returns:
      tree: nested dict of the filled leaves only, float32 in C order.
      report: one row per source tensor, then one per leaf that was not filled.
    Raises:
      ConversionError: listing every difference, with near misses.
    """
    wanted = {path: shape for path, shape in target_shapes.items() if inside(path, table.subtrees)}
    anew = [path for path in wanted if reset_classes and matches_any(table.class_leaves, path)]
    filled, rows, unmatched, differences, class_shapes = {}, [], [], [], {}
    for given_name, tensor in tensors.items():
        name = contents.printable(given_name)
        reasons = [d.reason for d in table.dropped if re.fullmatch(d.source, name)]
        matches = [
            (rule, m) for rule in table.rules if (m := _compiled(rule.source).fullmatch(name))
        ]
        if len(matches) + bool(reasons) > 1:
            differences.append(f"{name} matches several rules of table {table.name}")
        elif reasons:
            rows.append(Row(name, "", tensor.shape, None, None, f"dropped: {reasons[0]}"))
        elif not matches:
            unmatched.append(name)
        else:
            rule, match = matches[0]
            path = match.expand(rule.target)
            if path in filled:
                differences.append(f"{path} would be filled twice, the second time by {name}")
                continue
            if path not in wanted:
                unmatched.append(name)
                continue
            if path in anew:
                filled[path] = None
                rows.append(Row(name, "", tensor.shape, None, None, "dropped: for other classes"))
                continue
            if tensor.dtype.kind in "biuc":
                differences.append(f"{name} -> {path} has type {tensor.dtype}, not floating point")
                continue
            filled[path] = value = _transformed(tensor, rule.transforms)
            difference = _difference(value, wanted[path])
            if value.shape != tuple(wanted[path]) and matches_any(table.class_leaves, path):
                difference += ": the number of classes differs, see --reset_classes"
                class_shapes[path] = (value.shape, tuple(wanted[path]))
            if difference:
                differences.append(f"{name} -> {path} {difference}")
                continue
            mean, std = (float(f(value, dtype=np.float64)) for f in (np.mean, np.std))
            rows.append(Row(name, path, value.shape, mean, std, "matched"))

    unfilled = [path for path in wanted if path not in filled and path not in anew]
    missing = {_source_name(path, table) or path: path for path in unfilled}
    differences += _with_suggestions(
        unmatched, missing, "{} of the file fits no leaf of the detector"
    )
    differences += _with_suggestions(
        missing, unmatched, "{} of the detector's " + table.name + " weights is not in the file"
    )
    if not wanted:
        differences.append(f"the detector has no {' or '.join(table.subtrees)}")
    if differences:
        raise ConversionError(
            f"the file does not fit the detector ({len(differences)} differences); choose a config"
            " for its network:\n  " + "\n  ".join(differences),
            class_shapes,
            len(class_shapes) == len(differences),
        )
    rows += [Row("", path, tuple(wanted[path]), None, None, ANEW) for path in anew]
    rows += [
        Row("", path, tuple(shape), None, None, "left initialised")
        for path, shape in target_shapes.items()
        if path not in wanted
    ]
    return nest({path: value for path, value in filled.items() if path not in anew}), rows


def reverse(tree: Mapping, table: Table) -> dict[str, np.ndarray]:
    """Gives a tree from `convert` the source's names and layouts; dropped tensors stay dropped.

    Raises:
      ConversionError: no rule, or more than one, fills a leaf of the table's subtrees.
    """
    tensors, differences = {}, []
    for path, value in flatten(tree).items():
        if not inside(path, table.subtrees):
            continue
        found = _sources(path, table)
        if len(found) != 1:
            differences.append(f"{path} is the target of {len(found)} rules of table {table.name}")
            continue
        (name, rule), value = found[0], np.asarray(value)
        for transform in reversed(rule.transforms):
            value = TRANSFORMS[transform].inverse(value)
        tensors[name] = np.array(value, order="C")  # scalars stay scalars
    if differences:
        raise ConversionError("the tree does not fit the table:\n  " + "\n  ".join(differences))
    return tensors


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def format_report(rows: Iterable[Row]) -> str:
    """A readable table: where each tensor went, then the number of rows per status."""
    rows = list(rows)
    cells = [("source", "target", "shape", "mean", "std", "status")]
    for row in rows:
        numbers = ("" if x is None else f"{x:.4g}" for x in (row.mean, row.std))
        cells.append((row.source, row.target, "x".join(map(str, row.shape)), *numbers, row.status))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    counts = collections.Counter(row.status for row in rows)
    return "\n".join([*lines, "", *(f"{n:5d} {status}" for status, n in counts.items())])


def matches_any(patterns: tuple[str, ...], path: str) -> bool:
    """Whether a path matches one of the regexes, such as a table's `class_leaves`."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def inside(path: str, subtrees: tuple[str, ...]) -> bool:
    """Whether a leaf is in one of the subtrees."""
    return any(path.startswith(f"{subtree}/") for subtree in subtrees)


def _transformed(tensor: np.ndarray, transforms: tuple[str, ...]) -> np.ndarray:
    """The tensor after all transforms; unchanged if its rank does not allow them."""
    value = tensor
    for transform in transforms:
        try:
            value = TRANSFORMS[transform].forward(value)
        except (ValueError, IndexError):
            return np.asarray(tensor, np.float32)  # `_difference` reports the shape
    with np.errstate(over="ignore"):  # `_difference` reports values that overflow
        return np.array(value, np.float32, order="C")


def _difference(value: np.ndarray, shape: tuple[int, ...]) -> str:
    if value.shape != tuple(shape):
        words = f"has shape {value.shape}, but the detector needs {tuple(shape)}"
        is_stem = value.ndim == len(shape) == 4 and shape[2] == 3  # [k, k, channels, D]
        if is_stem and (*value.shape[:2], value.shape[3]) == (*shape[:2], shape[3]):
            words += f": {image_channels(value.shape[2])}"
        return words
    if not np.isfinite(value).all():
        return "holds values that are not finite in float32"
    return ""


def image_channels(count: int) -> str:
    """Why a network for images of `count` channels does not fit, and what to do."""
    images = "grey images (1 channel)" if count == 1 else f"images of {count} channels"
    remedy = f"a network for {images} has to be trained on RGB"
    if count == 1:
        remedy = (
            "in PyTorch, weight.repeat(1, 3, 1, 1) / 3 of this layer gives a network for RGB that"
            " computes the same for grey images"
        )
    return f"its network takes {images}, but the detector RGB (3 channels); {remedy}"


def _with_suggestions(names, others, template: str) -> list[str]:
    others, lines = list(others)[:_MAX_CANDIDATES], []
    for i, name in enumerate(names):
        close = difflib.get_close_matches(name, others, n=1) if i < _MAX_SUGGESTIONS else []
        hint = f"; near miss: {close[0]}" if close else ""
        lines.append(template.format(name) + hint)
    return lines


def _source_name(path: str, table: Table) -> str | None:
    """The source name that would fill `path`, for messages."""
    found = _sources(path, table)
    return found[0][0] if found else None


def _sources(path: str, table: Table) -> list[tuple[str, Rule]]:
    """Every source name that a rule of the table sends to `path`."""
    found = []
    for rule in table.rules:
        pattern, literals = _backwards(rule)
        match = pattern.fullmatch(path)
        if match:
            values = [match[f"g{i}"] for i in range(1, len(literals))]
            name = "".join(a + b for a, b in zip(literals, [*values, ""], strict=True))
            found.append((name, rule))
    return found


# Tables have more rules than `re` caches, and every rule is tried on every tensor.
_compiled = functools.cache(re.compile)


@functools.cache
def _backwards(rule: Rule) -> tuple[re.Pattern, list[str]]:
    """A pattern of the paths that the rule fills, and the text around the groups of its source.

    Group n of the source is named `gn` in the pattern.
    """
    groups = re.findall(r"\(([^()]*)\)", rule.source)
    parts = re.split(r"\\(\d)", rule.target)  # literal, number, literal, number, ...
    pattern = "".join(
        f"(?P<g{part}>{groups[int(part) - 1]})" if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )
    return re.compile(pattern), re.split(r"\([^()]*\)", rule.source.replace(r"\.", "."))

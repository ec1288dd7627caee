"""Public functions document every parameter: arrays by shape, everything else by annotation."""

import ast
import inspect
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# The packages that users import.
FILES = sorted(p for room in ("detlab", "converters") for p in (REPOSITORY / room).rglob("*.py"))
SHAPE = r"\[[^\]\n]*\]"


def public(tree):
    """The public functions of a file and the public methods of its classes."""
    for node in tree.body:
        within = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in within:
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                yield function


def section(docstring, name):
    """The indented lines below `Args:` or another heading."""
    found = re.search(rf"^( *){name}:\n((?:\1 +.*\n|\n)*)", docstring + "\n", re.MULTILINE)
    return inspect.cleandoc("\n" + found[2]) if found else ""


def shaped(name, docstring):
    """Whether the docstring gives the shape of a parameter, as `name: [N, 4]` or `name [N, 4]`."""
    entry = rf"^(?:\w+, )*{name}(?:, \w+)*: (.*(?:\n .*)*)"
    described = re.search(entry, section(docstring, "Args"), re.MULTILINE)
    if described:
        return re.search(SHAPE, described[1]) is not None
    return re.search(rf"\b{name}`? {SHAPE}", docstring) is not None


def missing(function):
    """The parameters, and "return", without annotation and without shape in the docstring."""
    docstring = ast.get_docstring(function) or ""
    args = function.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    parameters = [a for a in every if a is not None and a.arg not in ("self", "cls")]
    found = [a.arg for a in parameters if not a.annotation and not shaped(a.arg, docstring)]
    result = section(docstring, "Returns") or docstring.split("Args:")[0]
    if function.returns is None and not re.search(SHAPE, result):
        found.append("return")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_each_parameter_and_result_has_a_shape_or_a_type(path):
    incomplete = {}
    for function in public(ast.parse(path.read_text())):
        if names := missing(function):
            incomplete[function.name] = ", ".join(names)
    assert not incomplete


def test_a_parameter_without_shape_and_type_is_reported():
    text = '''
def scale(boxes, gt_boxes, factor, mode: str):
    """Larger boxes.

    Args:
      boxes, gt_boxes: [N, 4] xyxy px,
        or [B, N, 4].
      factor: of lengths.
    """

def area(boxes):
    """Areas [N] of boxes [N, 4], px^2."""
'''
    scale, area = ast.parse(text).body
    assert missing(scale) == ["factor", "return"]
    assert missing(area) == []

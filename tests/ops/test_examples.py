"""Every public op shows an example, and the example prints what it says."""

import ast
import doctest
import importlib
import pathlib

import pytest

import detlab.ops

FOLDER = pathlib.Path(detlab.ops.__file__).parent
MODULES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    module = importlib.import_module(f"detlab.ops.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
    functions = ast.parse((FOLDER / f"{name}.py").read_text()).body
    public = [f for f in functions if isinstance(f, ast.FunctionDef) and f.name[0] != "_"]
    assert [f.name for f in public if ">>>" not in (ast.get_docstring(f) or "")] == []

"""The notes of docs/notes are true: code, equations, figures, pictures, links and exercises."""

import json
import math
import pathlib
import re

import pytest

from benchmarks import notes

NOTES = notes.all_notes()
EQUATIONS = [(note, equation) for note in NOTES for equation in note.equations]
PICTURES = [(note, picture) for note in NOTES for picture in note.pictures]
# Commands of TeX that GitHub, GitLab, VS Code and Jupyter do not all render.
NOT_EVERYWHERE = (
    r"\operatorname",
    r"\newcommand",
    r"\bm",
    r"\label",
    r"\tag",
    r"\mbox",
    r"\DeclareM",
)


def by_name(value):
    return value.path.stem if isinstance(value, notes.Note) else None


each_note = pytest.mark.parametrize("note", NOTES, ids=by_name)


@each_note
def test_the_python_blocks_run_and_print_what_is_shown(note):
    assert not notes.run(note)


@each_note
def test_quotes_are_as_the_files_have_them(note):
    wrong = [text for quote in note.quotes if (text := notes.check_quote(quote))]
    assert not wrong, "\n\n".join(wrong)


@each_note
def test_a_note_has_the_sections_of_its_form(note):
    assert note.headings == list(notes.FORMS[note.form])


@each_note
def test_a_note_has_a_readable_length(note):
    lines = len(note.text.splitlines())
    least = {"detector": 150, "subject": 120, "history": 50}[note.form]
    assert least <= lines <= 320


@each_note
def test_tables_of_figures_are_as_the_results_have_them(note):
    assert notes.with_figures(note.text) == note.text, "run `python -m benchmarks.notes`"


@each_note
def test_a_note_with_code_has_an_equation_quotes_and_three_solved_exercises(note):
    if note.form == "history":
        return
    assert note.quotes and note.equations
    asked = note.text.partition("\n## Try it\n")[2]
    parts = re.split(r"^\*\*Exercise \d\.\*\*", asked, flags=re.MULTILINE)[1:]
    assert len(parts) == 3
    for part in parts:
        assert re.search(r"<summary>Answer</summary>.*?```python\n.*?assert ", part, re.DOTALL)


@each_note
def test_every_trap_names_a_test_that_exists(note, repository):
    traps = re.search(r"^## Traps$(.*?)^## ", note.text, re.DOTALL | re.MULTILINE)
    if traps is None:
        return
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", traps[1])
    assert len(named) >= 3
    for path, test in named:
        assert f"def {test}(" in (repository / path).read_text(), f"{path}::{test}"


@each_note
def test_formulas_use_what_the_usual_hosts_render(note):
    formulas = [equation.formula for equation in note.equations]
    formulas += re.findall(r"(?<![$\\])\$([^$\n]+)\$(?!\$)", re.sub(r"```.*?```", "", note.text))
    for formula in formulas:
        assert not [name for name in NOT_EVERYWHERE if name in formula], formula
        assert formula.count("{") == formula.count("}"), formula


@pytest.mark.parametrize(
    "note, equation", EQUATIONS, ids=lambda x: getattr(x, "target", by_name(x))
)
def test_an_equation_is_compared_with_its_function(note, equation):
    """A function whose formula changed is noticed: the first change of one operation here."""
    name, _, symbol = equation.target.partition(":")
    assert f"{name.rpartition('.')[2]}." in equation.block.text and symbol in equation.block.text
    assert "assert" in equation.block.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "note, equation", EQUATIONS, ids=lambda x: getattr(x, "target", by_name(x))
)
def test_a_note_fails_if_the_formula_of_its_function_changes(note, equation):
    noticed, missed = notes.mutate(equation)
    assert noticed and len(missed) <= len(noticed), missed


@pytest.mark.parametrize("note, picture", PICTURES, ids=lambda x: getattr(x, "path", by_name(x)))
def test_pictures_are_small_and_have_their_numbers_beside_them(note, picture):
    path = note.path.parent / picture.path
    assert 0 < path.stat().st_size <= notes.LARGEST_PICTURE
    assert json.loads(path.with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("note, picture", PICTURES, ids=lambda x: getattr(x, "path", by_name(x)))
def test_pictures_show_what_the_tools_compute(note, picture, tmp_path, shared_dir):
    found = notes.use_tool(picture.arguments, tmp_path)
    kept = json.loads((note.path.parent / picture.path).with_suffix(".json").read_text())
    assert close(found, kept)


def close(a, b):
    """Whether two values of JSON are equal, floats to a thousandth."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)
    return a == b


# ------------------------------------------------------------------------------------------------
# The machinery itself


PAGE = """# A note
<!-- form: subject -->

<!-- equation: benchmarks.notes_example:area -->
$$ a = w h $$

```python
from benchmarks import notes_example

assert notes_example.area(2.0, 3.0) == 6.0
```

```python
x = 1 + 1
print(x)
```

```text
2
```
"""


def test_a_wrong_output_is_reported_with_its_line(tmp_path):
    page = PAGE.partition("<!-- equation")[0] + "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    note = notes.Note(tmp_path / "1_a.md", page)
    (wrong,) = notes.run(note)
    assert wrong == "1_a.md:9 shows\n3\nnot\n2\n"
    assert not notes.run(note._replace(text=page.replace("3\n```", "2\n```")))


def test_a_quote_is_code_of_the_symbol_in_order(tmp_path):
    (tmp_path / "a.py").write_text("def f(x):\n    y = x\n    z = y\n    return z\n\n\nA = 1\n")

    def wrong(source, text):
        return notes.check_quote(notes.Quote(source, notes.Block(1, "python", text)), tmp_path)

    assert not wrong("a.py:f", "def f(x):\n    # ...\n    return z\n")
    assert not wrong("a.py:f", "y = x\nz = y\n") and not wrong("a.py:A", "A = 1\n")
    assert wrong("a.py:f", "z = y\n# ...\ny = x\n") and wrong("a.py:f", "y = z\n")
    assert wrong("a.py:g", "x\n") == "a.py:g: there is no such symbol"


def test_each_operation_of_a_function_is_changed_once():
    found = dict(notes.mutants("def f(a, b):\n    return a * b + (a < 1)\n"))
    assert found.keys() == {
        "a * b + (a < 1) -> a * b - (a < 1)",
        "a * b -> a / b",
        "a < 1 -> a >= 1",
    }
    assert "return a / b + (a < 1)" in found["a * b -> a / b"]


def test_a_changed_formula_is_noticed_and_the_function_is_put_back(tmp_path, monkeypatch):
    from detlab.losses import regression

    text = "from detlab.losses import regression\nassert float(regression.{}) {} 0\n"
    name = next(n for n in vars(regression) if n == "smooth_l1")
    block = notes.Block(1, "python", text.format("smooth_l1(1.0, 3.0, 1.0)", ">"))
    before = getattr(regression, name)
    equation = notes.Equation(f"detlab.losses.regression:{name}", "", block, pathlib.Path("a.md"))
    noticed, missed = notes.mutate(equation)
    assert getattr(regression, name) is before and len(noticed) + len(missed) > 3
    exact = block._replace(text=text.format("smooth_l1(1.0, 3.0, 1.0)", "- 1.5 =="))
    assert len(notes.mutate(equation._replace(block=exact))[0]) > len(noticed)


def test_the_form_of_results_is_compared(repository):
    assert close({"a": [1, 2.0001]}, {"a": [1, 2.0]}) and not close({"a": 1.1}, {"a": 1.0})

r"""What keeps the notes of docs/notes true: their code, equations, figures and pictures.

    python -m benchmarks.notes                     # renews tables, lists which changes are noticed
    python -m benchmarks.notes --pictures --only 7 # draws the pictures of a note again

A note is a page in Markdown.  Comments in it say what a block is; the tests check all of it.

    <!-- form: detector -->                 the sections that the note has; see `FORMS`
    <!-- quote: detlab/assign/atss.py:atss -->
                                            the next Python block is part of that function or class;
                                            a line `# ...` stands for lines that are left out
    <!-- equation: detlab.losses.focal:sigmoid_focal -->
                                            the $$ formula that follows is that function; the Python
                                            block after it, which stands alone, computes the formula
                                            with NumPy and compares
    <!-- picture: positives --config ... ; main_0.png -->
                                            the next picture is this file of `detlab tools`; its
                                            JSON lies beside it
    <!-- figures: atss_shapes, retinanet_shapes: begin -->
                                            what is published and what we reached, a row for each
                                            detector, up to `<!-- figures: end -->`

All other Python blocks run in order, in one namespace; a `text` block after one is its output.  A
section `Try it` has exercises, each with an answer whose Python block asserts it.
"""

import ast
import contextlib
import importlib
import inspect
import io
import json
import pathlib
import re
import shlex
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import command
from detlab import cli, errors, files

FOLDER = pathlib.PurePath("docs", "notes")
# The second-level headings of a note, by its form.
FORMS = {
    "detector": (
        *("In one picture", "The problem", "The idea", "The code", "Who learns what", "The loss"),
        *("Prediction", "Traps", "Published and ours", "Try it", "Read on"),
    ),
    "subject": (
        "In one picture",
        "The problem",
        "The idea",
        "The code",
        "Traps",
        "Try it",
        "Read on",
    ),
    "history": ("In one picture", "The problem", "The idea", "What came of it", "Read on"),
}
LARGEST_PICTURE = 120_000  # bytes


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.notes", __doc__)
    parser.add_argument("--only", action="append", default=[], help="number or name of a note")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures again")
    args = parser.parse_args(arguments)
    chosen = [n for n in all_notes() if not args.only or {n.number, n.path.stem} & set(args.only)]
    if not chosen:
        raise errors.UserError(f"--only {args.only[0]}: no such note in {FOLDER}.")
    rows = []
    for note in chosen:
        new = with_figures(note.text)
        if new != note.text:
            files.write_text(note.path, new)
            print(f"{note.path.name}: tables written")
        if args.pictures:
            for picture in note.pictures:
                draw(note, picture)
                print(f"{note.path.name}: {picture.path} drawn")
        else:
            for equation in note.equations:
                noticed, missed = mutate(equation)
                rows.append(
                    (note.path.stem, f"`{equation.target}`", f"{len(noticed)}", *_told(missed))
                )
    if rows:
        print(command.table(("note", "function", "changes noticed", "not noticed", "which"), rows))


def _told(missed: Sequence[str]) -> tuple[str, str]:
    return str(len(missed)), "; ".join(missed)


# ------------------------------------------------------------------------------------------------
# A note and its parts


class Block(NamedTuple):
    """A fenced block."""

    line: int  # number of the line after the fence
    language: str
    text: str


class Quote(NamedTuple):
    """Code of ours, shown in a note."""

    source: str  # path:symbol
    block: Block


class Equation(NamedTuple):
    """A formula, the function that is it, and the code that compares the two."""

    target: str  # module:function
    formula: str
    block: Block
    page: pathlib.Path


class Picture(NamedTuple):
    """A picture and how it is drawn."""

    arguments: tuple[str, ...]  # of `detlab tools`
    file: str  # of the tool's output folder
    path: str  # in the folder of the notes


class Note(NamedTuple):
    """A page of docs/notes."""

    path: pathlib.Path
    text: str

    @property
    def number(self) -> str:
        return self.path.stem.partition("_")[0].lstrip("0") or "0"

    @property
    def form(self) -> str:
        found = re.search(r"<!-- form: (\w+) -->", self.text)
        return found[1] if found else ""

    @property
    def headings(self) -> list[str]:
        return re.findall(r"^## (.+)$", self.text, re.MULTILINE)

    @property
    def quotes(self) -> list[Quote]:
        return [
            Quote(found[1], next(self.blocks(found.end())))
            for found in re.finditer(r"<!-- quote: (\S+) -->", self.text)
        ]

    @property
    def equations(self) -> list[Equation]:
        marks = list(re.finditer(r"<!-- equation: (\S+) -->", self.text))
        found = []
        for mark in marks:
            formula = re.search(r"\$\$(.+?)\$\$", self.text[mark.end() :], re.DOTALL)
            block = next(self.blocks(mark.end()), None)
            if formula is None or block is None:
                raise ValueError(
                    f"{self.path.name}: the equation of {mark[1]} lacks a formula or block"
                )
            found.append(Equation(mark[1], formula[1], block, self.path))
        return found

    @property
    def pictures(self) -> list[Picture]:
        pattern = r"<!-- picture: (.+?); (\S+) -->\s*!\[[^\]]*\]\(([^)]+)\)"
        return [
            Picture(tuple(shlex.split(found[1])), found[2], found[3])
            for found in re.finditer(pattern, self.text, re.DOTALL)
        ]

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """The fenced blocks from a place in the text on."""
        for found in re.finditer(
            r"^```(\w*)\n(.*?)^```$", self.text[start:], re.DOTALL | re.MULTILINE
        ):
            line = self.text[: start + found.start(2)].count("\n") + 1
            yield Block(line, found[1], found[2])


def all_notes(tree: pathlib.Path = command.REPOSITORY) -> list[Note]:
    """The notes of a checkout, by number."""
    return [Note(path, path.read_text()) for path in sorted((tree / FOLDER).glob("[0-9]*.md"))]


# ------------------------------------------------------------------------------------------------
# Blocks that run


def run(note: Note) -> list[str]:
    """Runs the Python blocks of a note that are no quotes; returns what is wrong.

    Those of equations run apart from the others, each in its own namespace.
    """
    quoted = {quote.block.line for quote in note.quotes}
    alone = {equation.block.line for equation in note.equations}
    names, wrong, printed = {"__name__": "reader"}, [], None
    for block in note.blocks():
        if block.language == "python" and block.line not in quoted:
            names_of = {"__name__": "reader"} if block.line in alone else names
            printed = _run(block, note.path, names_of)
        elif block.language == "text" and printed is not None:
            if block.text.strip() != printed.strip():
                wrong.append(f"{note.path.name}:{block.line} shows\n{block.text}not\n{printed}")
            printed = None
        else:
            printed = None
    return wrong


def _run(block: Block, page: pathlib.Path, names: dict[str, Any]) -> str:
    """Runs a block, with the true numbers of lines; returns what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------
# Quotes


def check_quote(quote: Quote, tree: pathlib.Path = command.REPOSITORY) -> str:
    """What is wrong with a quote; "" if it is as the file has it."""
    path, _, symbol = quote.source.partition(":")
    try:
        source = source_of((tree / path).read_text(), symbol)
    except (OSError, KeyError):
        return f"{quote.source}: there is no such symbol"
    place, text = 0, _compact(source)
    for part in re.split(r"^[ ]*# \.\.\.\n", quote.block.text, flags=re.MULTILINE):
        found = text.find(_compact(part), place)
        if found < 0:
            part = textwrap.dedent(part).strip("\n")
            return f"{quote.source} lacks these lines, in this order:\n{part}\n\nIt is:\n{source}"
        place = found + len(_compact(part))
    return ""


def _compact(text: str) -> str:
    """Code without what a formatter changes: white space, and commas before a closing bracket."""
    return re.sub(r",([)\]}])", r"\1", re.sub(r"\s+", "", text))


def source_of(text: str, symbol: str) -> str:
    """The source of a function, class, method `Class.name` or constant, dedented.

    Raises:
      KeyError: the text has no such symbol.
    """
    body = ast.parse(text).body
    for part in symbol.split("."):
        node = next((x for x in body if _name(x) == part), None)
        if node is None:
            raise KeyError(symbol)
        body = getattr(node, "body", [])
    first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign):
        return getattr(node.targets[0], "id", None)
    return getattr(node, "name", None)


# ------------------------------------------------------------------------------------------------
# Equations


def mutate(equation: Equation) -> tuple[list[str], list[str]]:
    """Changes one operation of the function at a time and runs the block of the equation.

    Returns:
      The changes that the block notices, by an error, and those that it does not.
    """
    name, _, symbol = equation.target.partition(":")
    module = importlib.import_module(name)
    original = getattr(module, symbol)
    _run(equation.block, equation.page, {"__name__": "reader"})  # unchanged, it must pass
    noticed, missed = [], []
    for label, source in mutants(inspect.getsource(inspect.unwrap(original))):
        names = {}
        exec(compile(source, module.__file__, "exec"), vars(module), names)
        setattr(module, symbol, names[symbol])
        try:
            _run(equation.block, equation.page, {"__name__": "reader"})
        except Exception:  # whatever the change leads to
            noticed.append(label)
        else:
            missed.append(label)
        finally:
            setattr(module, symbol, original)
    return noticed, missed


_OTHER = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what is changed, source) for each operation of a function that has a counterpart."""
    source = textwrap.dedent(source)
    count = len(_operations(ast.parse(source)))
    for index in range(count):
        tree = ast.parse(source)
        holder, attribute = _operations(tree)[index]
        before = ast.unparse(holder)
        if attribute == "ops":
            holder.ops[0] = _OTHER[type(holder.ops[0])]()
        else:
            holder.op = _OTHER[type(holder.op)]()
        yield f"{before} -> {ast.unparse(holder)}", ast.unparse(tree)


def _operations(tree: ast.Module) -> list[tuple[Any, str]]:
    """The operations in the body of the function that can be changed: (node, attribute)."""
    found = []
    for statement in tree.body[0].body:
        for node in ast.walk(statement):
            if isinstance(node, ast.BinOp) and type(node.op) in _OTHER:
                found.append((node, "op"))
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
                found.append((node, "ops"))
    return found


# ------------------------------------------------------------------------------------------------
# Figures


def with_figures(text: str, tree: pathlib.Path = command.REPOSITORY) -> str:
    """The text with its tables of figures written anew."""

    def table(found: re.Match) -> str:
        names = [name.strip() for name in found[1].split(",")]
        begin, end = f"<!-- figures: {found[1]}: begin -->", "<!-- figures: end -->"
        return f"{begin}\n\n{figures(names, tree)}\n\n{end}"

    pattern = r"<!-- figures: ([^:]+): begin -->.*?<!-- figures: end -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def figures(names: Sequence[str], tree: pathlib.Path = command.REPOSITORY) -> str:
    """A row for each detector: published figures, parity, and what we reached.

    Raises:
      UserError: a name is no detector.
    """
    known = command.choose(names, command.detector_files(tree), "detector")
    listed = command.read_json(tree / "converters" / "models.json")["models"]
    results = tree / "benchmarks" / "results"
    parity = command.read_json(results / "release_parity.json")["cases"]
    shapes = command.read_json(results / "shapes_cpu.json")["rows"]
    rows = []
    for name in known:
        of_name = [row for row in listed if row["detector"] == name]
        cases = {row["parity"] for row in of_name if "parity" in row}
        passed = sum(parity.get(case, {}).get("status") == "passed" for case in cases)
        overfit = results / f"overfit_{name}_cpu.json"
        rows.append(
            (
                f"[`{name}`](../../detlab/detectors/{name}.py)",
                "; ".join(f"{row['model']}: {row['published']}" for row in of_name[:3]),
                f"{passed} of {len(cases)}",
                f"{command.read_json(overfit)['AP50']:.3f}" if overfit.exists() else "",
                f"{shapes[x]['figures']['AP']:.3f}" if (x := f"{name}_shapes") in shapes else "",
            )
        )
    return command.table(
        ("detector", "published", "cases passed", "overfit AP50", "AP on shapes"), rows
    )


# ------------------------------------------------------------------------------------------------
# Pictures


def draw(note: Note, picture: Picture) -> None:
    """Draws a picture again; its JSON goes beside it."""
    target = note.path.parent / picture.path
    with tempfile.TemporaryDirectory() as folder:
        content = use_tool(picture.arguments, pathlib.Path(folder))
        files.write_json(target.with_suffix(".json"), content)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pathlib.Path(folder) / picture.file, target)


def use_tool(arguments: Sequence[str], folder: pathlib.Path) -> Any:
    """Runs `detlab tools ARGUMENTS` into a folder; returns the results in its JSON."""
    name, *rest = arguments
    module = importlib.import_module(f"detlab.tools.{name}")
    with contextlib.chdir(command.REPOSITORY), contextlib.redirect_stdout(io.StringIO()):
        module.main([*rest, "--output", str(folder)])
    return json.loads((folder / f"{name}.json").read_text())["results"]


if __name__ == "__main__":
    errors.run_main(main)

"""Lines repeated in three or more detector files, and numbers of lines by folder.

    python -m benchmarks.repetition
    python -m benchmarks.repetition --show retinanet
    python -m benchmarks.repetition --tree path/to/other/checkout

A detector file can be read alone, so its imports, fields, signatures and docstrings repeat those of
others on purpose.  Any other code that a third file repeats should move to a shared place.  A line
of a file counts if, without its indentation, it

- is longer than 12 characters and not a comment,
- is not part of an import, a field (`name: type` in a class), a signature (`class` or `def` up to
  its body, decorators included) or a docstring,
- and occurs, letter for letter, in three or more files of detlab/detectors.

A line that occurs twice in a file counts twice.  A line marked with `|` is next to another repeated
line in three files.  Several such lines are a part that has no shared place yet.  A single line is
the call of a part that has one; every further detector adds such calls.  Exit status 1 if a file
has LIMIT or more lines in a row.
"""

import ast
import collections
import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import command
from detlab import cli, errors, paths

SHORTEST = 13  # characters; shorter lines are `return loss` or a bracket
FILES = 3
LIMIT = 8  # lines in a row; each detector file must have fewer
FOLDERS = ("detlab", "experiments", "converters", "benchmarks", "tests", "docs")
KINDS = (".py", ".md")

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Repeated(NamedTuple):
    """A line of a file that other files have too."""

    number: int  # in the file, from 1
    text: str
    files: tuple[str, ...]  # that have the line, this one included
    in_a_row: bool  # FILES files have it next to the line before or after it


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.repetition", __doc__)
    parser.add_argument("--show", help="detector file whose repeated lines to list")
    parser.add_argument(
        "--tree", type=paths.path, default=command.REPOSITORY, help="checkout to read"
    )
    args = parser.parse_args(arguments)
    files = command.detector_files(args.tree)
    sources = {name: path.read_text() for name, path in files.items()}
    found = repeated(sources)
    if args.show:
        name = pathlib.PurePath(args.show).stem
        if name not in found:
            raise errors.UserError(
                f"--show {args.show}: no such detector file; there are: {', '.join(found)}."
            )
        for line in found[name]:
            mark = "|" if line.in_a_row else " "
            print(f"{line.number:5} {mark} {line.text}  [{', '.join(line.files)}]")
        print()
    print(f"{'file':<24}{'lines':>8}{'repeated':>10}{'in a row':>10}")
    rows = {name: sum(line.in_a_row for line in lines) for name, lines in found.items()}
    for name, lines in found.items():
        total = len(sources[name].splitlines())
        print(f"{name:<24}{total:>8}{len(lines):>10}{rows[name]:>10}")
    print()
    print(f"{'folder':<24}" + "".join(f"{kind:>8}" for kind in KINDS))
    for folder, counts in lines_by_folder(args.tree).items():
        print(f"{folder:<24}" + "".join(f"{counts[kind]:>8}" for kind in KINDS), flush=True)
    many = [name for name, count in rows.items() if count >= LIMIT]
    if many:
        print(f"\n{', '.join(many)}: {LIMIT} or more in a row; --show FILE lists them")
        sys.exit(1)


def repeated(sources: Mapping[str, str]) -> dict[str, list[Repeated]]:
    """The lines of each file that occur in `FILES` files or more, by the rule above."""
    lines = {name: counted(text) for name, text in sources.items()}
    having = collections.defaultdict(list)
    for name, of_file in lines.items():
        for text in {*of_file.values(), *_pairs(of_file).values()}:
            having[text].append(name)
    found = {}
    for name, of_file in lines.items():
        pairs = [pair for pair, texts in _pairs(of_file).items() if len(having[texts]) >= FILES]
        in_a_row = {number for pair in pairs for number in pair}
        found[name] = [
            Repeated(number, text, tuple(having[text]), number in in_a_row)
            for number, text in of_file.items()
            if len(having[text]) >= FILES
        ]
    return found


def _pairs(lines: Mapping[int, str]) -> dict[tuple[int, int], tuple[str, str]]:
    """{numbers: texts} of neighbouring lines of a file, at most one uncounted line apart."""
    items = list(lines.items())
    return {(i, j): (a, b) for (i, a), (j, b) in itertools.pairwise(items) if j - i <= 2}


def counted(source: str) -> dict[int, str]:
    """{number: stripped line} of the lines that may count, in order."""
    left_out = set()
    for node in ast.walk(ast.parse(source)):
        for first, last in _declared(node):
            left_out.update(range(first, last + 1))
    return {
        number: text
        for number, line in enumerate(source.splitlines(), 1)
        if number not in left_out
        and len(text := line.strip()) >= SHORTEST
        and not text.startswith("#")
    }


def _declared(node: ast.AST) -> list[tuple[int, int]]:
    """(first line, last line) of each declaration in a node; these lines do not count."""
    spans = []
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        spans.append((node.lineno, node.end_lineno))
    if isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
        first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
        spans.append((first, max(node.lineno, _first_line(node.body[0]) - 1)))
    if isinstance(node, ast.ClassDef):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        spans += [(item.lineno, item.end_lineno) for item in fields]
    if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)):
        if ast.get_docstring(node, clean=False) is not None:
            spans.append((node.body[0].lineno, node.body[0].end_lineno))
    return spans


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])


def lines_by_folder(tree: pathlib.Path) -> dict[str, dict[str, int]]:
    """{folder: {".py": lines, ".md": lines}}, blank lines and comments included."""
    return {
        folder: {
            kind: sum(
                len(path.read_text().splitlines()) for path in (tree / folder).rglob(f"*{kind}")
            )
            for kind in KINDS
        }
        for folder in FOLDERS
    }


if __name__ == "__main__":
    errors.run_main(main)

"""Lines that stand in three or more detector files, and lines of code and pages by folder.

    python -m benchmarks.repetition
    python -m benchmarks.repetition --show retinanet
    python -m benchmarks.repetition --tree path/to/other/checkout

A detector file reads whole, so its imports, fields, signatures and docstrings repeat what others
have, on purpose.  Everything else that stands in a third file is a part that wants a place of its
own.  Counted are the lines of a file that, without their indentation,

- are longer than 12 characters and no comment,
- belong to no import, field (`name: type` in a class), signature (`class` or `def` up to its body,
  decorators included) and docstring,
- and stand, letter for letter, in three or more files of detlab/detectors.

A line that stands twice in a file counts twice.  A line marked with `|` stands next to another
repeated one in three files.  Several of them are a part that has no place yet; a single line is
the call of a part that has one, to which every further detector adds.  Exit status 1 where a file
has LIMIT or more in a row.
"""

import ast
import collections
import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import command
from detlab import cli, errors

SHORTEST = 13  # characters: less is `return loss` or a bracket
FILES = 3
LIMIT = 8  # lines in a row: fewer in each detector file
FOLDERS = ("detlab", "experiments", "converters", "benchmarks", "tests", "docs")
KINDS = (".py", ".md")

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Repeated(NamedTuple):
    """A line of a file that others have too."""

    number: int  # in the file, from 1
    text: str
    files: tuple[str, ...]  # that have it, this one included
    in_a_row: bool  # FILES files have it and the line before or after it, one after the other


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    parser = cli.program("benchmarks.repetition", __doc__)
    parser.add_argument("--show", help="detector file whose repeated lines are listed")
    parser.add_argument(
        "--tree", type=pathlib.Path, default=command.REPOSITORY, help="checkout to read"
    )
    args = parser.parse_args(arguments)
    files = command.detector_files(args.tree)
    sources = {name: path.read_text() for name, path in files.items()}
    found = repeated(sources)
    if args.show:
        name = pathlib.PurePath(args.show).stem
        if name not in found:
            raise errors.UserError(f"--show {args.show}: there are {', '.join(found)}.")
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
    """The lines of each file that stand in `FILES` files or more, by the rule above."""
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
    """{numbers: texts} of two lines of a file with at most one that does not count between."""
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
    """(first line, last line) of what a node declares, which does not count."""
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

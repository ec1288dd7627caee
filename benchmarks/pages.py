"""The tables of README and docs that list detectors, cases and results, from what is there.

    python -m benchmarks.pages

Rewrites what stands between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page:

    detectors   README.md            files of detlab/detectors and experiments, first sentences
    cases       docs/parity.md       benchmarks/results/release_parity.json
    overfit     docs/performance.md  benchmarks/results/overfit_*_cpu.json
    models      docs/performance.md  benchmarks/results/models_cpu.json
    test times  docs/performance.md  benchmarks/results/tests_cpu.json

An everyday test fails where a page is not as this command writes it.
"""

import ast
import collections
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from benchmarks import command, test_times
from detlab import cli, errors, files

_RESULTS = pathlib.PurePath("benchmarks", "results")


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    parser = cli.program("benchmarks.pages", __doc__)
    parser.add_argument(
        "--tree", type=pathlib.Path, default=command.REPOSITORY, help="checkout to write"
    )
    args = parser.parse_args(arguments)
    pages = {page: (read(args.tree, page), rewritten(args.tree, page)) for page in BLOCKS}
    for page, (old, new) in pages.items():
        if new != old:
            files.write_text(args.tree / page, new)
        print(f"{page}: {'as it was' if new == old else 'written'}")


def read(tree: pathlib.Path, page: str) -> str:
    """The text of a page.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return (tree / page).read_text()
    except OSError as error:
        raise errors.UserError(f"{tree / page} cannot be read: {error.strerror}.") from error


def rewritten(tree: pathlib.Path, page: str) -> str:
    """The text of a page with its blocks as they have to be.

    Raises:
      UserError: the page lacks marks, or a file of results cannot be read.
    """
    text = read(tree, page)
    for name, table in BLOCKS[page].items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, found, rest = text.partition(begin)
        _, ends, after = rest.partition(end)
        if not found or not ends:
            raise errors.UserError(
                f"{tree / page} lacks the marks {begin} and {end}; put them where it belongs."
            )
        text = f"{before}{begin}\n\n{table(tree)}\n\n{end}{after}"
    return text


def detectors(tree: pathlib.Path) -> str:
    """A row for each detector file: its experiments, and the first sentence of its docstring."""
    names = list(command.detector_files(tree))
    data = collections.defaultdict(list)
    for path in sorted((tree / "experiments").glob("*.py")):
        owners = [name for name in names if path.stem.startswith(f"{name}_")]
        if owners:
            owner = max(owners, key=len)  # reppoints_v2_coco is not of reppoints
            data[owner].append(path.stem.removeprefix(f"{owner}_"))
    rows = []
    for name in names:
        file = f"detlab/detectors/{name}.py"
        docstring = ast.get_docstring(ast.parse(read(tree, file))) or ""
        first = " ".join(docstring.partition("\n\n")[0].split()).removesuffix(".")
        what = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", first)
        page = f"docs/{name}.md"
        if (tree / page).is_file():
            what += f"; [{page}]({page})"
        rows.append((f"[`{name}`]({file})", ", ".join(data[name]), what))
    return command.table(("detector", "configs for", "what it is"), rows)


def cases(tree: pathlib.Path) -> str:
    """A row for each case of parity with a model, and how many quantities were compared."""
    found = _results(tree, "release_parity.json")["cases"]
    found = {name: row for name, row in found.items() if row["status"] != "missing"}
    twins = {name: f"small/{name}_small" for name in found if f"small/{name}_small" in found}
    rows = []
    for name, row in found.items():
        if name not in twins.values():
            twin = _verdict(found[twins[name]]) if name in twins else ""
            rows.append((f"`{name}`", _verdict(row), twin))
    return command.table(("case", "published size", "narrow twin"), rows)


def _verdict(row: dict[str, Any]) -> str:
    if row["status"] == "passed":
        return f"passes: {row['quantities']}"
    missed = len(row.get("missed", ()))
    return f"fails: {missed} of {row['quantities']}" if missed else f"fails: {row['reason']}"


def overfit(tree: pathlib.Path) -> str:
    """A row for each result of benchmarks.overfit."""
    rows = []
    for path in sorted((tree / _RESULTS).glob("overfit_*_cpu.json")):
        row = _results(tree, path.name)
        first, *_, last = row["curve"]["train"]
        rows.append(
            (
                row["name"],
                f"{row['AP50']:.3f}",
                f"{row['AP']:.3f}",
                f"{first[1]:.3g} -> {last[1]:.3g}",
                str(row["steps"]),
                f"{row['cpu_minutes']:.1f}",
            )
        )
    return command.table(("detector", "AP50", "AP", "loss", "steps", "CPU minutes"), rows)


def models(tree: pathlib.Path) -> str:
    """A row for each model that was measured, with its peer."""
    rows = []
    for name, row in _results(tree, "models_cpu.json")["models"].items():
        of = row["predict"], row["train"]
        ratios = " / ".join(f"{x['ratio']:.2f}" if "ratio" in x else "-" for x in of)
        rows.append(
            (
                name,
                "x".join(map(str, row["canvas"])),
                f"{row['parameters_m']:.1f}",
                " + ".join(f"{x['compile_s']:.0f}" for x in of),
                *(f"{x['ms']:.0f}" for x in of),
                " + ".join(f"{x['peak_mib'] or 0:.0f}" for x in of),
                f"{row['peer']}: {ratios}" if row["peer"] else "",
            )
        )
    head = ("detector", "canvas", "M parameters", "compile s, predict + train", "predict ms")
    return command.table((*head, "train ms", "peak MiB", "peer and ratio"), rows)


def times(tree: pathlib.Path) -> str:
    """Where the time of the tests goes."""
    return test_times.tables(test_times.read_figures(tree / _RESULTS / "tests_cpu.json"))


def _results(tree: pathlib.Path, name: str) -> Any:
    path = tree / _RESULTS / name
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise errors.UserError(f"{path} is not JSON: {error}; restore it.") from error


# Page -> {name of a block: (checkout) -> its Markdown}.
BLOCKS = {
    "README.md": {"detectors": detectors},
    "docs/parity.md": {"cases": cases},
    "docs/performance.md": {"overfit": overfit, "models": models, "test times": times},
}


if __name__ == "__main__":
    errors.run_main(main)

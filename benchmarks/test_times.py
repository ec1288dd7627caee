r"""Where the time of the tests goes: by folder and by detector, and the slowest tests.

    python -m pytest -m "not slow" -n 2 --dist worksteal --junitxml everyday.xml
    python -m pytest -m slow -n 2 --dist worksteal --junitxml slow.xml
    python -m benchmarks.test_times --everyday everyday.xml --slow slow.xml \
        --output benchmarks/results/tests_cpu.json

Reads pytest's XML reports; either part may be omitted.  `.ci/run` prints the tables and, with
--compare, the times that differ from the committed ones by more than a tenth.

Times of tests are worker-seconds: two processes that test side by side for a minute spend two
minutes.  They include set-up, test and teardown, so a fixture of a module or a session counts for
the first test that uses it in each process.  The wall time of a part also includes imports,
collection and the wait for the slowest process.

A test counts for a detector if its file is named after it (`test_darknet_training.py`), or else if
a parameter begins with its name (`test_contract.py::test_x[retinanet]`); other tests count for no
detector.
"""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from benchmarks import command, machine
from detlab import cli, errors, files, paths

PARTS = ("everyday", "slow")
MOVED = 0.1  # relative to the committed time
MOVED_S = 5.0  # smaller changes do not count: short times vary from run to run


class Test(NamedTuple):
    """A test of a report."""

    file: str  # tests/ops/test_nms.py
    name: str  # test_x[parameters]
    seconds: float


class Part(NamedTuple):
    """A report."""

    tests: list[Test]
    wall_s: float


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.test_times", __doc__)
    for part in PARTS:
        parser.add_argument(f"--{part}", type=paths.path, help="pytest's XML report of that part")
    parser.add_argument("--slowest", type=int, default=60, help="tests to list per part")
    parser.add_argument("--compare", type=paths.path, help="JSON that --output wrote earlier")
    parser.add_argument("--output", type=paths.path, help="JSON of the figures")
    args = parser.parse_args(arguments)
    parts = {name: read(path) for name in PARTS if (path := getattr(args, name))}
    if not parts:
        raise errors.UserError("no report is given; use --everyday, --slow, or both.")
    figures = {"machine": machine.describe()}
    figures |= {name: summarise(part) for name, part in parts.items()}
    print(tables(figures), flush=True)
    for name, part in parts.items():
        print(f"\nThe slowest of the {name} tests, s:")
        for test in sorted(part.tests, key=lambda test: -test.seconds)[: args.slowest]:
            print(f"{test.seconds:8.1f}  {test.file}::{test.name}")
    if args.compare:  # after the tables: that file may be damaged
        print("", *moved(read_figures(args.compare), figures, args.compare), sep="\n", flush=True)
    if args.output:
        files.write_json(args.output, figures)


def read(path: pathlib.Path) -> Part:
    """The tests of a pytest report.

    Raises:
      UserError: it cannot be read, or is not a pytest report.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ElementTree.ParseError as error:
        text = f"{path} is not a pytest report ({error}); pytest writes one with --junitxml."
        raise errors.UserError(text) from error
    tests = []
    for case in root.iter("testcase"):
        # tests.ops.test_nms, followed by .TestClass if the test is in a class
        *folders, module = re.match(r".*?\btest_\w+|.*", case.get("classname", ""))[0].split(".")
        file = "/".join([*folders, f"{module}.py"])
        tests.append(Test(file, case.get("name", ""), float(case.get("time", 0))))
    if not tests:
        raise errors.UserError(f"{path} has no tests; pytest writes a report with --junitxml.")
    return Part(tests, sum(float(suite.get("time", 0)) for suite in root.iter("testsuite")))


def summarise(part: Part) -> dict[str, Any]:
    """The figures of a part: of all tests, of each folder and of each detector."""
    known = list(command.detector_files())
    return {
        "wall_s": round(part.wall_s),
        **_sums(("all", test) for test in part.tests)["all"],
        "folders": _sums(
            (pathlib.PurePath(test.file).parent.as_posix(), test) for test in part.tests
        ),
        "detectors": _sums(
            (name, test) for test in part.tests if (name := detector_of(test, known))
        ),
    }


def _sums(named: Iterable[tuple[str, Test]]) -> dict[str, dict]:
    found = collections.defaultdict(list)
    for name, test in named:
        found[name].append(test.seconds)
    return {
        name: {"tests": len(seconds), "worker_s": round(sum(seconds), 1)}
        for name, seconds in sorted(found.items())
    }


def detector_of(test: Test, known: Sequence[str]) -> str:
    """The detector whose name begins the name of the test's file, or else a parameter; or ""."""
    parameters = test.name.partition("[")[2].removesuffix("]").split("-")
    for text in (pathlib.PurePath(test.file).stem.removeprefix("test_"), *parameters):
        for name in sorted(known, key=len, reverse=True):
            if re.match(rf"{name}(?![a-zA-Z0-9])", text):
                return name
    return ""


def tables(figures: Mapping[str, Any]) -> str:
    """The figures in Markdown: a table of folders and one of detectors."""
    parts = [name for name in PARTS if name in figures]
    lines = []
    for name in parts:
        part = figures[name]
        lines.append(
            f"- {name}: {part['tests']} tests, {part['worker_s']:.0f} worker-seconds,"
            f" {part['wall_s'] / 60:.1f} minutes"
        )
    for kind in ("folders", "detectors"):
        head = [kind[:-1]] + [f"{name} {unit}" for name in parts for unit in ("tests", "s")]
        rows = []
        for row in sorted({row for name in parts for row in figures[name][kind]}):
            cells = [row]
            for name in parts:
                found = figures[name][kind].get(row)
                cells += [str(found["tests"]), f"{found['worker_s']:.0f}"] if found else ["", ""]
            rows.append(cells)
        lines += ["", command.table(head, rows)]
    return "\n".join(lines)


def moved(before: Mapping[str, Any], now: Mapping[str, Any], file: pathlib.Path) -> list[str]:
    """A line for each time that differs by more than a tenth, and what to do about it."""
    lines = []
    for name in PARTS:
        if name not in now:
            continue
        if name not in before:
            lines.append(f"{name}: no earlier times")
            continue
        pairs = {f"{name}": (before[name], now[name])}
        for kind in ("folders", "detectors"):
            old, new = before[name][kind], now[name][kind]
            for row in sorted(old.keys() | new.keys()):
                pairs[f"{name} {row}"] = old.get(row, _NOTHING), new.get(row, _NOTHING)
        for what, (old, new) in pairs.items():
            change = new["worker_s"] - old["worker_s"]
            if abs(change) > max(MOVED * old["worker_s"], MOVED_S):
                lines.append(
                    f"{what}: {old['worker_s']:.0f} -> {new['worker_s']:.0f} worker-seconds,"
                    f" {old['tests']} -> {new['tests']} tests"
                )
    if not lines:
        return [f"No time differs from {file} by more than a tenth."]
    where = f"Times that differ from {file} by more than a tenth, on this machine"
    return [f"{where}; if it was idle, update that file:", *lines]


_NOTHING = {"tests": 0, "worker_s": 0.0}


def read_figures(path: pathlib.Path) -> dict[str, Any]:
    """The figures that --output wrote.

    Raises:
      UserError: the file cannot be read, or has no such figures.
    """
    try:
        figures = json.loads(path.read_text())
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise errors.UserError(f"{path} is not JSON: {error}; write it with --output.") from error
    if not isinstance(figures, dict) or not set(PARTS) & figures.keys():
        raise errors.UserError(f"{path} has no test times; write it with --output.")
    return figures


if __name__ == "__main__":
    errors.run_main(main)

"""What counts as a repeated line of a detector file, on small made-up files."""

import pytest

from benchmarks import command, repetition
from detlab import errors


def test_no_detector_file_has_as_many_lines_in_a_row_as_the_limit():
    sources = {name: path.read_text() for name, path in command.detector_files().items()}
    found = {
        name: sum(line.in_a_row for line in lines)
        for name, lines in repetition.repeated(sources).items()
    }
    many = [name for name, count in found.items() if count >= repetition.LIMIT]
    assert not many, f"`python -m benchmarks.repetition --show {many[0]}` lists them: {found}"


FILE = '''"""A docstring that all files have."""

import something_that_all_files_import
from somewhere import (
    something_else_of_theirs,
)


class Module:
    """A docstring of a class, alike."""

    field_of_all: int = 1
    long_field_of_all: tuple[int, ...] = (
        1000000000000,
    )

    @decorated_in_all_files
    def method_of_all(
        self, argument_of_all
    ):
        """A docstring of a method."""
        # a comment that all files have
        number: int = self.compute_it()
        shared_by_all = number + 1
        return short
'''
COUNTED = ["number: int = self.compute_it()", "shared_by_all = number + 1"]


def test_declarations_comments_and_short_lines_do_not_count():
    assert list(repetition.counted(FILE).values()) == COUNTED
    assert repetition.counted(FILE)[23] == COUNTED[0]


def test_a_line_is_repeated_where_three_files_have_it_and_counts_each_time():
    line, other = "value = compute(images)\n", "another = compute(boxes)\n"
    found = repetition.repeated(
        {"a": line + other + "if value:\n    " + line, "b": line, "c": line + other}
    )
    assert [(x.number, x.text, x.files) for x in found["a"]] == [
        (1, line.strip(), ("a", "b", "c")),
        (4, line.strip(), ("a", "b", "c")),
    ]
    assert len(found["b"]) == len(found["c"]) == 1
    assert not any(x.in_a_row for lines in found.values() for x in lines)


def test_lines_are_in_a_row_where_three_files_have_both_one_after_the_other():
    first, second, own = (
        "value = compute(images)\n",
        "another = compute(boxes)\n",
        "mine = {}(it)\n",
    )
    part = first + "x = 1\n" + second  # a short line between
    whole = {name: own.format(name * 9) + part for name in "abc"}
    found = repetition.repeated(whole | {"d": first + own.format("d" * 9) + second})
    assert [x.in_a_row for x in found["a"]] == [True, True]
    assert [x.in_a_row for x in found["d"]] == [False, False]
    apart = repetition.repeated({**whole, "c": first + own.format("c" * 9) + second})
    assert not any(x.in_a_row for lines in apart.values() for x in lines)


def tree(folder, files, lines):
    detectors = folder / "detlab" / "detectors"
    detectors.mkdir(parents=True)
    (folder / "docs").mkdir()
    (folder / "docs" / "page.md").write_text("# A page\n\ntext\n")
    for name in files:
        text = "".join(f"shared_value_{i} = 1\n" for i in range(lines))
        (detectors / f"{name}.py").write_text(text)
    return folder


def test_the_exit_status_says_whether_a_file_reaches_the_limit(tmp_path, capsys):
    few = tree(tmp_path / "few", "abc", repetition.LIMIT - 1)
    repetition.main(["--tree", str(few), "--show", "b.py"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == "1 | shared_value_0 = 1 [a, b, c]".split()
    assert ["a", "7", "7", "7"] in [line.split() for line in printed]
    assert ["docs", "0", "3"] in [line.split() for line in printed]
    many = tree(tmp_path / "many", "abc", repetition.LIMIT)
    with pytest.raises(SystemExit) as stop:
        repetition.main(["--tree", str(many)])
    assert stop.value.code == 1
    assert "a, b, c: 8 or more in a row" in capsys.readouterr().out


def test_a_tree_without_detectors_and_an_unknown_file_are_told(tmp_path):
    with pytest.raises(errors.UserError, match="detectors has no detector files; give --tree"):
        repetition.main(["--tree", str(tmp_path)])
    with pytest.raises(errors.UserError, match="--show x: no such detector file; there are: a, b"):
        repetition.main(["--tree", str(tree(tmp_path / "t", "ab", 1)), "--show", "x"])

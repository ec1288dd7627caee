"""The tables of README and docs are as `benchmarks.pages` writes them from what is there."""

import json

import pytest

from benchmarks import pages
from detlab import errors


@pytest.mark.parametrize("page", pages.BLOCKS)
def test_the_pages_are_as_the_command_writes_them(page, repository):
    as_written = pages.rewritten(repository, page) == pages.read(repository, page)
    assert as_written, f"{page} is older than what it lists: run `python -m benchmarks.pages`"


FILES = {
    "detlab/detectors/__init__.py": "",
    "detlab/detectors/cat.py": '"""Cat: A Detector\n(arXiv:1234.56789).\n\nMore of it.\n"""\n',
    "detlab/detectors/cat_v2.py": '"""A cat with a change."""\n',
    "experiments/common.py": "",
    "experiments/cat_coco.py": "",
    "experiments/cat_shapes.py": "",
    "experiments/cat_v2_coco.py": "",
    "docs/cat_v2.md": "# More of it\n",
    "README.md": "before\n<!-- detectors: begin -->\nold\n<!-- detectors: end -->\nafter\n",
}
DETECTORS = """\
| detector | configs for | what it is |
|---|---|---|
| [`cat`](detlab/detectors/cat.py) | coco, shapes | Cat: A Detector\
 ([arXiv:1234.56789](https://arxiv.org/abs/1234.56789)) |
| [`cat_v2`](detlab/detectors/cat_v2.py) | coco | A cat with a change;\
 [docs/cat_v2.md](docs/cat_v2.md) |"""


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_detector_is_listed_by_its_files_alone(tree):
    assert pages.detectors(tree) == DETECTORS


def test_only_what_stands_between_the_marks_is_written(tree, monkeypatch, capsys):
    monkeypatch.setattr(pages, "BLOCKS", {"README.md": pages.BLOCKS["README.md"]})
    for said in ("written", "as it was"):
        pages.main(["--tree", str(tree)])
        assert capsys.readouterr().out == f"README.md: {said}\n"
        begin, end = "<!-- detectors: begin -->", "<!-- detectors: end -->"
        text = f"before\n{begin}\n\n{DETECTORS}\n\n{end}\nafter\n"
        assert (tree / "README.md").read_text() == text


def test_cases_stand_beside_their_twins_and_failures_are_told(tree):
    passed = {"status": "passed", "quantities": 5, "missed": {}}
    rows = {
        "cat_r50": passed,
        "dog_r50": {"status": "missing", "reason": "no model"},
        "small/cat_r50_small": passed | {"quantities": 3},
        "small/cow_r50_small": {"status": "failed", "reason": "it ended"},
        "yolo/cat": passed | {"status": "failed", "missed": {"map a": "0.1 > 0"}},
    }
    results = tree / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "release_parity.json").write_text(json.dumps({"cases": rows}))
    assert pages.cases(tree).splitlines()[2:] == [
        "| `cat_r50` | passes: 5 | passes: 3 |",
        "| `small/cow_r50_small` | fails: it ended |  |",
        "| `yolo/cat` | fails: 1 of 5 |  |",
    ]


def test_a_page_without_marks_and_results_that_cannot_be_read_are_told(tree):
    with pytest.raises(errors.UserError, match="release_parity.json cannot be read"):
        pages.cases(tree)
    (tree / "README.md").write_text("<!-- detectors: end --> <!-- detectors: begin -->")
    with pytest.raises(errors.UserError, match="README.md lacks the marks <!-- detectors: begin"):
        pages.main(["--tree", str(tree)])

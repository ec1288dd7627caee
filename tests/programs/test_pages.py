"""The tables in README and docs match the output of `benchmarks.pages`."""

import json
import re

import pytest

from benchmarks import command, pages
from detlab import errors


@pytest.mark.parametrize("page", pages.BLOCKS)
def test_the_pages_are_as_the_command_writes_them(page, repository):
    as_written = pages.rewritten(repository, page) == pages.read(repository, page)
    assert as_written, f"{page} is out of date: run `python -m benchmarks.pages`"


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
- [`cat`](detlab/detectors/cat.py): Cat: A Detector
- [`cat_v2`](detlab/detectors/cat_v2.py): A cat with a change"""


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_detector_is_listed_by_its_files_alone(tree):
    assert pages.detectors(tree) == DETECTORS


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_a_model_is_listed_with_its_file_checksum_licence_parity_and_command(tree):
    row = {
        "detector": "cat",
        "model": "big",
        "config": "cat_coco:big",
        "options": "--bgr",
        "published": "AP 12.3",
        "measured_on": "COCO val2017",
        "origin": "a paper",
        "url": "https://cats/big%2Bcat_20200130-01234567.pth",
        "mb": 15,
    }
    plain = row | {"model": "small", "url": "https://cats/small.pt", "parity": "cat_small"}
    del plain["options"], plain["mb"]
    by_hand = plain | {"model": "saved", "url": "https://cats/d/7/view", "file": "cat_v1.pth"}
    licences = [{"publisher": "cats", "licence": "MIT", "repository": "cats/cats"}]
    backbone = {"model": "Paw", "url": row["url"], "source": "torchvision"}
    content = {"licences": licences, "models": [row, plain, by_hand], "backbones": [backbone]}
    write_json(tree / "converters" / "models.json", content)
    results = tree / "benchmarks" / "results"
    case = {"status": "passed", "quantities": 5}
    write_json(results / "release_parity.json", {"cases": {"cat_small": case}})
    assert pages.published(tree).splitlines() == [
        "### Cat: A Detector",
        "",
        "| model | published | config | file | SHA-256 | licence | parity |",
        "|---|---|---|---|---|---|---|",
        "| big | AP 12.3, COCO val2017; a paper | `cat_coco:big` `--bgr`"
        f" | [.pth, 15 MB]({row['url']}) | `01234567` | MIT |  |",
        "| small | AP 12.3, COCO val2017; a paper | `cat_coco:big`"
        " | [.pt](https://cats/small.pt) | not published | MIT | `cat_small`: passes: 5 |",
        "| saved | AP 12.3, COCO val2017; a paper | `cat_coco:big`"
        " | [.pth, by hand](https://cats/d/7/view) | not published | MIT"
        " | `cat_small`: passes: 5 |",
        "",
        "```bash",
        "detlab convert --config cat_coco:big --bgr --output weights/big+cat \\",
        f"    --input {row['url']}",
        "detlab convert --config cat_coco:big --output weights/small \\",
        "    --input small.pt",
        "detlab convert --config cat_coco:big --output weights/cat_v1 \\",
        "    --input cat_v1.pth",
        "```",
    ]
    assert f"| [.pth]({row['url']}) | `01234567` | MIT |" in pages.backbones(tree)

    write_json(results / "models_cpu.json", {"models": {}})
    assert pages.overview(tree).splitlines()[3].endswith("|  | coco | 0 of 0 |  |  |")
    sizes = {name: {"parameters_m": m} for name, m in (("cat", 1.0), ("cats", 2.0), ("cat_v2", 9))}
    write_json(results / "models_cpu.json", {"models": sizes})
    expected = "Expected: shapes | 30 epochs, not timed | 1 GB for 8 images | AP 0.5, seed 0"
    (tree / "experiments" / "cat_shapes.py").write_text(f'"""Cat.\n\n{expected}\n"""\n')
    lines = pages.overview(tree).splitlines()[2:]
    cells = "| coco shapes | 1 of 1 | 1.0 to 2.0 | 0.5, seed 0, 30 epochs, not timed |"
    assert lines[0].endswith(cells)
    assert lines[1].endswith("|  | coco | 0 of 0 | 9.0 |  |")


def test_only_what_stands_between_the_marks_is_written(tree, monkeypatch, capsys):
    monkeypatch.setattr(pages, "BLOCKS", {"README.md": pages.BLOCKS["README.md"]})
    for said in ("written", "unchanged"):
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


def test_a_loader_without_its_peer_has_empty_cells(tree):
    one = {"threads": 1, "workers": 0, "images_s": 99.6, "cpu_ms": 10.04}
    peer = {"version": "torchvision 1, PyTorch 2", "images_s": 50.0, "cpu_ms": 20.0}
    measured = [one | {"peer": peer, "ratio": 0.502}, one | {"threads": 2, "peer": None}]
    absent = [one | {"peer": {"absent": "no torch"}}]
    rows = {
        "1x/coco": {"peer": "torchvision", "canvas": [800, 1344], "measured": measured},
        "yolov5/coco": {"peer": "yolov5", "canvas": [640, 640], "measured": absent},
    }
    cores = {
        "1x/coco": {"images_s": 220, "detlab": 2.2, "peer": 4.4},
        "yolov5/coco": {"images_s": 600, "detlab": 6.0},
    }
    results = tree / "benchmarks" / "results"
    write_json(results / "loader_cpu.json", {"rows": rows, "cores": cores})
    lines = pages.loader(tree).splitlines()
    assert lines[:2] == [
        "- `1x/coco`, 220 images/s: **2.2 cores**; torchvision 4.4",
        "- `yolov5/coco`, 600 images/s: **6.0 cores**",
    ]
    assert lines[5:] == [
        "| 1x/coco | 800x1344 | 1 | 0 | 100 | 10.0 | torchvision | 50 | 20.0 | 0.50 |",
        "| 1x/coco | 800x1344 | 2 | 0 | 100 | 10.0 |  |  |  |  |",
        "| yolov5/coco | 640x640 | 1 | 0 | 100 | 10.0 |  |  |  |  |",
    ]


def test_a_page_without_marks_and_results_that_cannot_be_read_are_told(tree):
    with pytest.raises(errors.UserError, match="release_parity.json cannot be read"):
        pages.cases(tree)
    (tree / "README.md").write_text("<!-- detectors: end --> <!-- detectors: begin -->")
    with pytest.raises(errors.UserError, match="README.md lacks the marks <!-- detectors: begin"):
        pages.main(["--tree", str(tree)])


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"parity": "dog"}, "no result of parity for the case 'dog'"),
        ({"url": "https://dogs/a.pth"}, "no publisher in `licences` is part of https://dogs/a.pth"),
    ],
)
def test_a_row_of_models_json_that_names_nothing_known_is_reported(tree, change, sentence):
    row = {"detector": "cat", "model": "big", "config": "cat_coco", "published": "AP 1"}
    row |= {"measured_on": "COCO", "origin": "a paper", "url": "https://cats/a.pth"} | change
    licences = [{"publisher": "cats", "licence": "MIT", "repository": "cats/cats"}]
    write_json(tree / "converters" / "models.json", {"licences": licences, "models": [row]})
    write_json(tree / "benchmarks" / "results" / "release_parity.json", {"cases": {}})
    with pytest.raises(errors.UserError, match=re.escape(sentence)):
        pages.published(tree)


@pytest.fixture
def listed(tree, monkeypatch):
    """A list of one name with all that shows that it works."""
    name = pages.Listed("Cats", ("cat", "cat_v2"), ("cat_r50",), ("cat",), ("cat_shapes",))
    monkeypatch.setattr(pages, "LIST", (name,))
    results = tree / "benchmarks" / "results"
    write_json(results / "release_parity.json", {"cases": {"cat_r50": {"status": "passed"}}})
    write_json(results / "shapes_cpu.json", {"rows": {"cat_shapes": {"figures": {"AP": 0.5}}}})
    write_json(results / "overfit_cat_cpu.json", {"AP50": 0.9})
    return results


def test_a_name_of_the_list_has_files_cases_and_figures(tree, listed):
    links = "[`cat`](../detlab/detectors/cat.py), [`cat_v2`](../detlab/detectors/cat_v2.py)"
    assert pages.names(tree).splitlines()[-1] == f"| Cats | {links} | 1 of 1 | 0.900 | 0.500 |"


@pytest.mark.parametrize(
    ("file", "content", "lacks"),
    [
        (
            "release_parity.json",
            {"cases": {"cat_r50": {"status": "failed"}}},
            "a passed case cat_r50",
        ),
        ("release_parity.json", {"cases": {}}, "a passed case cat_r50"),
        ("shapes_cpu.json", {"rows": {"cat_shapes": {"error": "killed"}}}, "a run of cat_shapes"),
        ("overfit_cat_cpu.json", None, "overfit_cat_cpu.json"),
        ("../../detlab/detectors/cat_v2.py", None, "detlab/detectors/cat_v2.py"),
    ],
    ids=range(5),
)
def test_a_name_of_the_list_that_lacks_something_is_reported(tree, listed, file, content, lacks):
    if content is None:
        (listed / file).unlink()
    else:
        write_json(listed / file, content)
    with pytest.raises(errors.UserError) as raised:
        pages.names(tree)
    assert str(raised.value) == f"the list of detectors: Cats lacks {lacks}."


def test_the_list_has_25_names_and_every_detector_is_on_it(repository):
    assert len(pages.LIST) == len({row.name for row in pages.LIST}) == 25
    on_it = {file for row in pages.LIST for file in row.files}
    assert on_it == set(command.detector_files(repository))

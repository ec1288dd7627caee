"""The page of the tools shows the commands of `benchmarks.tool_pages` and their pictures."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from benchmarks import tool_pages
from detlab import __main__ as command
from detlab import errors


def test_the_page_has_a_section_command_and_picture_for_each_documented_tool(repository):
    page = (repository / "docs" / "tools.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == {
        *(tool.name for tool in tool_pages.TOOLS),
        "convert_dataset",
        "errors",
    }
    assert sections.keys() == command._tool_lines().keys() - {"fit_anchors"}
    for tool in tool_pages.TOOLS:
        text = sections[tool.name].replace("\\\n    ", "")
        lines = re.findall(r"^detlab tools (\w+) (.*) --output shown$", text, re.MULTILINE)
        assert (tool.name, tool.arguments.replace("boxes.csv", BOXES)) in lines
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert str(tool.target) in [f"docs/{picture}" for picture in pictures]
        assert 5000 < (repository / tool.target).stat().st_size <= tool_pages.LARGEST
        for word in shlex.split(tool.arguments):
            if word.startswith("runs/"):
                assert word.removeprefix("runs/") in tool_pages.RUNS


BOXES = "docs/pictures/tools/boxes.csv"


def test_a_picture_is_copied_small_and_a_missing_or_large_one_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    blank = np.full((80, 120, 3), 255, np.uint8)
    blank[20:40, 20:60] = 200, 30, 30
    Image.fromarray(blank).save(tmp_path / "a.png")
    tool_pages.copy(tmp_path / "a.png", tmp_path / "b.png")
    copied = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    np.testing.assert_array_equal(copied, blank)
    with pytest.raises(errors.UserError, match="no.png was not written; correct its line in TOOLS"):
        tool_pages.copy(tmp_path / "no.png", tmp_path / "b.png")
    Image.fromarray(rng.integers(0, 256, (500, 500, 3), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(errors.UserError, match="bytes, more than 120000; draw less"):
        tool_pages.copy(tmp_path / "c.png", tmp_path / "d.png")


def test_a_command_runs_in_the_folder_of_its_runs(tmp_path, monkeypatch):
    calls = []

    def run(module, *words, folder):
        calls.append((module, *words))
        if module != "detlab.train":
            (folder / "curves").mkdir()
            Image.new("RGB", (20, 20)).save(folder / "curves" / "curves.png")

    monkeypatch.setattr(tool_pages.command, "run_module", run)
    tool = tool_pages.Tool("curves", "runs/fcos_shapes --smooth 0.8", "curves.png")
    target = tool_pages.write(tool, tmp_path, tmp_path / "tree")
    assert target == tmp_path / "tree" / "docs" / "pictures" / "tools" / "curves.png"
    assert target.exists()
    training, drawing = calls
    assert training[:5] == (
        "detlab.train",
        *("--config", "fcos_shapes", "--workdir", "runs/fcos_shapes"),
    )
    assert drawing == (
        "detlab.tools.curves",
        *("runs/fcos_shapes", "--smooth", "0.8", "--output", "curves"),
    )

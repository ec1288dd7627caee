"""The Python blocks of docs/python.md and docs/ops.md run as a reader types them, in order."""

import contextlib
import re

import pytest


def blocks(page):
    """(line number, text) of each Python block."""
    text = page.read_text()
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        yield text[: found.start(1)].count("\n") + 1, found[1]


def run(page, folder):
    """Runs all blocks in one namespace and returns it."""
    names = {"__name__": "reader"}
    with contextlib.chdir(folder):
        for line, text in blocks(page):
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)  # true line numbers
    return names


def test_the_page_on_array_functions_runs(repository, tmp_path):
    names = run(repository / "docs" / "ops.md", tmp_path)
    assert (names["by_iou"].status > 0).sum() == (names["by_atss"].status > 0).sum() == 4


@pytest.mark.slow
def test_the_page_on_python_runs(repository, shared_dir, tiny_run, tmp_path):
    """Slow: YOLOv5n and a training step are compiled."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shapes").symlink_to(tiny_run)
    (tmp_path / "yolov5n.pt").symlink_to(shared_dir / "weights" / "yolov5n-v6.pt")
    for name in ("bus.jpg", "dog.jpg"):
        (tmp_path / name).symlink_to(shared_dir / "images" / name)
    names = run(repository / "docs" / "python.md", tmp_path)
    assert (tmp_path / "found.png").stat().st_size > 10_000
    assert len(names["entries"]) == len(names["detections"]) == len(names["result"]) == 5
    assert float(names["loss"]) > 0 and abs(names["gradient"]).max() > 0

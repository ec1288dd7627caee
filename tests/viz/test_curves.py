"""Curves of a run as a PNG file."""

import cv2
import numpy as np
import pytest

from detlab.viz import curves

ROWS = [
    {
        "step": step,
        "train/loss": 3 / (1 + step),
        "train/loss/cls": 2 / (1 + step),
        "train/loss/box": 1 / (1 + step),
        "train/lr": 0.01,
    }
    for step in range(5)
]
EVALS = [{"step": step, "eval/AP": 0.1 * step, "eval/AP50": 0.2 * step} for step in (2, 4)]


def height(path):
    picture = cv2.imread(str(path))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10  # not a blank page
    return picture.shape[0]


def test_only_quantities_that_were_logged_get_a_panel(tmp_path):
    curves.plot_run(ROWS + EVALS, tmp_path / "three.png")
    curves.plot_run(EVALS, tmp_path / "one.png")
    assert height(tmp_path / "three.png") == 3 * height(tmp_path / "one.png")


def test_of_a_repeated_step_the_last_row_counts(tmp_path):
    stale = [{"step": step, "train/loss": 50.0} for step in (3, 4)]
    curves.plot_run(ROWS, tmp_path / "clean.png")
    curves.plot_run(ROWS[:3] + stale + ROWS[3:], tmp_path / "restarted.png")
    assert (tmp_path / "clean.png").read_bytes() == (tmp_path / "restarted.png").read_bytes()


def test_minus_one_and_nan_leave_a_gap(tmp_path):
    absent = [{"step": 1, "eval/AP": -1, "eval/AP50": float("nan")}]
    curves.plot_run(EVALS, tmp_path / "without.png")
    curves.plot_run(absent + EVALS, tmp_path / "with.png")
    assert height(tmp_path / "with.png") == height(tmp_path / "without.png")


def test_folders_are_made_and_rows_without_quantities_raise(tmp_path):
    curves.plot_run(EVALS, tmp_path / "new" / "folder" / "curves.png")
    assert height(tmp_path / "new" / "folder" / "curves.png") > 100
    with pytest.raises(ValueError, match="the rows have no train/loss"):
        curves.plot_run([{"step": 1}], tmp_path / "none.png")

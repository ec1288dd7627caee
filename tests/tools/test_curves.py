"""The tool that draws the logs of several runs together."""

import json

import numpy as np
import pytest

from detlab import errors
from detlab.tools import curves

FIRST = [
    {"step": 1, "train/loss": 4.0, "train/loss/cls": 3.0},
    {"step": 2, "train/loss": 2.0, "train/loss/cls": 1.0, "train/lr": 0.1},
    {"step": 3, "train/loss": 3.0, "train/loss/cls": 2.0},
    {"step": 2, "eval/AP": 0.5},
    {"step": 3, "eval/AP": 0.25},
]
SECOND = [{"step": 2, "train/loss": 1.0}, {"step": 2, "eval/AP": -1.0}]


@pytest.fixture
def runs(tmp_path):
    for name, rows in (("first", FIRST), ("second", SECOND)):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    return tmp_path


def test_a_key_has_a_line_for_each_run_that_logged_it():
    runs = {"first": FIRST, "second": SECOND}
    found = curves.of_runs(runs, ["loss", "eval/AP"], 0.0)
    assert list(found) == ["train/loss", "eval/AP"]
    loss = found["train/loss"]["first"]
    assert loss["steps"].tolist() == [1, 2, 3] and loss["values"].tolist() == [4, 2, 3]
    assert (loss["best"], loss["best_step"], loss["last"]) == (2, 2, 3)
    assert (found["eval/AP"]["first"]["best"], found["eval/AP"]["first"]["best_step"]) == (0.5, 2)
    assert list(found["eval/AP"]) == ["first"]  # -1: there was nothing to average
    first, second = curves.draw(found).axes
    assert [line.get_ydata().tolist() for line in first.lines] == [[4, 2, 3], [1]]
    assert [line.get_ydata().tolist() for line in second.lines] == [[0.5, 0.25]]
    other = [{**FIRST[0], "train/loss": 9.0}, *FIRST[1:]]
    changed = curves.of_runs({"first": other}, ["loss"], 0.0)
    assert curves.draw(changed).axes[0].lines[0].get_ydata().tolist() == [9, 2, 3]


def test_patterns_match_with_and_without_the_part():
    assert list(curves.of_runs({"a": FIRST}, ["loss/*", "train/lr"], 0)) == [
        "train/loss/cls",
        "train/lr",
    ]
    assert len(curves.of_runs({"a": FIRST}, ["train/*", "lr"], 0)) == 3


def test_smoothed_values_are_weighted_means_and_gaps_stay():
    smoothed = curves.smoothly([4.0, np.nan, 2.0, 3.0], 0.5)
    weights = [1, 0.5, 0.125]  # of 3, 2 and 4: the gap counts as a step
    expected = (3 * weights[0] + 2 * weights[1] + 4 * weights[2]) / sum(weights)
    np.testing.assert_allclose(smoothed, [4, np.nan, (2 + 4 * 0.25) / 1.25, expected])
    assert curves.smoothly([4.0, 2.0], 0.0).tolist() == [4, 2]


def test_folders_and_files_are_read_and_everything_drawn_is_written(runs, capsys):
    paths = [str(runs / "first"), str(runs / "second" / "metrics.jsonl")]
    curves.main([*paths, "--smooth=0.5", f"--output={runs / 'out'}"])
    assert capsys.readouterr().out.endswith("/out/curves.json\n")
    found = json.loads((runs / "out" / "curves.json").read_text())["results"]
    assert list(found["train/loss"]) == ["first", "second"]
    assert found["train/loss"]["first"]["smoothed"][1] == pytest.approx((2 + 4 * 0.5) / 1.5, 1e-5)
    assert found["eval/AP"]["first"]["smoothed"] == [0.5, 0.25]  # evaluations stay as they are
    assert (runs / "out" / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["first", "--keys=los"], "--keys: no run has 'los'. Did you mean loss?"),
        (["first", "--smooth=1"], "--smooth is 1; it must be at least 0 and below 1."),
        (["none"], "none does not exist; name the folder of a training run."),
        (["."], "has no metrics.jsonl; name the folder of a training run."),
        (["first", "--config.seed=1"], "curves takes no --config.seed; remove it."),
    ],
)
def test_mistakes_are_told_in_a_sentence(runs, words, sentence, monkeypatch):
    monkeypatch.chdir(runs)
    with pytest.raises(errors.UserError, match=sentence):
        curves.main([*words, "--output=out"])

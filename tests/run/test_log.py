"""The run log: rows, means, counts, and the rows that a resumed run keeps."""

import json

import pytest

from detlab import errors
from detlab.run import log as log_lib


@pytest.fixture
def open_log(tmp_path):
    """`open_log(first_step)` -> a log, closed after the test."""
    logs = []

    def open_log(first_step=0, **counts):
        logs.append(log_lib.RunLog(tmp_path, first_step, counts))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def test_a_row_holds_means_since_the_row_before_and_counts_since_the_beginning(open_log):
    log = open_log()
    log.lost(3, 0)
    log.step({"loss": 1.0, "lr": 0.5})
    log.lost(0, 1)
    log.step({"loss": 3.0, "lr": 0.5})
    short = log.write(2, batch_size=4)
    log.lost(1, 0)
    log.step({"loss": 7.0, "lr": 0.25})
    log.write(3, batch_size=4)
    first, second = log_lib.read_rows(log.path)
    assert first.pop("train/images_per_second") > 0
    assert first == {
        "step": 2,
        "train/loss": 2.0,
        "train/lr": 0.5,
        "data/no_slot_boxes": 3,
        "data/skipped_images": 1,
    }
    assert second["step"] == 3 and second["train/loss"] == 7.0 and second["train/lr"] == 0.25
    assert second["data/no_slot_boxes"] == 4 and second["data/skipped_images"] == 1
    assert "loss 2.000" in short and "img/s" in short and "lr" not in short


def test_speed_counts_images_and_leaves_out_what_was_not_training(open_log, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_lib.time, "time", lambda: now[0])
    log = open_log()
    log.step({})
    now[0] += 2.0
    with log.not_training():
        now[0] += 50.0
    log.step({})
    now[0] += 2.0
    assert log.write(2, batch_size=6).startswith("3.0 img/s")
    assert log_lib.read_rows(log.path)[0]["train/images_per_second"] == pytest.approx(3.0)


def test_what_was_left_out_when_the_data_opened_is_in_every_row(open_log):
    log = open_log(dropped_boxes=2, skipped_records=1)
    log.step({"loss": 1.0})
    log.write(1, 1)
    row = log_lib.read_rows(log.path)[0]
    assert row["data/dropped_boxes"] == 2 and row["data/skipped_records"] == 1


def test_a_row_needs_a_step(open_log):
    log = open_log()
    assert log.write(1, 1) == "" and log_lib.read_rows(log.path) == []


@pytest.mark.parametrize("line", [b"5", b'{"loss": 1}', b"\xff\xfe", b"[1]"])
def test_lines_that_are_no_rows_are_refused(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'\n{"step": 3}\n')
    with pytest.raises(errors.UserError, match="line 1 of"):
        log_lib.read_rows(path)


def test_evaluations_are_rows_of_their_own_and_one_a_step(open_log):
    log = open_log()
    log.evaluation(5, {"AP": 0.25})
    log.evaluation(5, {"AP": 0.25})
    assert log_lib.read_rows(log.path) == [{"step": 5, "eval/AP": 0.25}]


def test_rows_are_on_disk_before_the_log_is_closed(open_log):
    log = open_log()
    log.evaluation(1, {"AP": 0.5})
    assert log.path.read_text() == '{"step": 1, "eval/AP": 0.5}\n'


def test_a_resumed_run_takes_off_the_rows_that_it_makes_again(open_log):
    log = open_log()
    for step in (10, 20, 30):
        log.evaluation(step, {"AP": step / 100})
    log.close()
    log = open_log(20)
    log.evaluation(30, {"AP": 0.9})
    rows = log_lib.read_rows(log.path)
    assert [(r["step"], r["eval/AP"]) for r in rows] == [(10, 0.1), (20, 0.2), (30, 0.9)]
    assert not list(log.path.parent.glob("*.tmp"))


def test_a_resumed_run_knows_which_of_its_steps_were_evaluated(open_log):
    log = open_log()
    log.evaluation(10, {"AP": 0.1})
    log.step({"loss": 1.0})
    log.write(20, 1)
    log.evaluation(30, {"AP": 0.3})
    log.close()
    log = open_log(20)
    assert [log.has_evaluation(step) for step in (10, 20, 30)] == [True, False, False]


def test_a_line_that_a_kill_cut_short_is_left_out(open_log, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "eval/AP": 0.1}\n{"step": 2, "eval/A')
    assert log_lib.read_rows(path) == [{"step": 1, "eval/AP": 0.1}]
    log = open_log(5)
    log.evaluation(6, {"AP": 0.2})
    assert [r["step"] for r in log_lib.read_rows(path)] == [1, 6]


def test_a_broken_line_in_the_middle_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(errors.UserError, match=r"line 2 of .*metrics\.jsonl is not a row"):
        log_lib.read_rows(path)


def test_counts_go_on_from_the_last_row_that_is_kept(open_log):
    log = open_log()
    for step, dropped in ((1, 2), (2, 5), (3, 100)):
        log.lost(dropped, step)
        log.step({"loss": 1.0})
        log.write(step, 1)
    log.evaluation(2, {"AP": 0.5})  # a row without counts
    log.close()
    log = open_log(2)
    log.lost(10, 0)
    log.step({"loss": 1.0})
    log.write(3, 1)
    row = log_lib.read_rows(log.path)[-1]
    assert row["data/no_slot_boxes"] == 2 + 5 + 10
    assert row["data/skipped_images"] == 1 + 2


def test_a_log_that_does_not_write_knows_what_was_evaluated_and_leaves_the_files(
    open_log, tmp_path
):
    log = open_log()
    log.evaluation(5, {"AP": 0.25})
    before = sorted((p, p.stat().st_size) for p in tmp_path.rglob("*"))
    silent = log_lib.RunLog(tmp_path, 7, {}, writes=False)
    assert silent.has_evaluation(5) and not silent.has_evaluation(6)
    silent.lost(1, 1)
    silent.step({"loss": 0.5})
    assert "loss 0.500" in silent.write(8, 2)
    silent.evaluation(8, {"AP": 0.5})
    silent.close()
    assert sorted((p, p.stat().st_size) for p in tmp_path.rglob("*")) == before


def test_tensorboard_gets_the_same_numbers(open_log, tmp_path):
    log = open_log()
    log.evaluation(5, {"AP": 0.25})
    log.close()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"eval/AP" in events.read_bytes()


def test_no_file_has_no_rows(tmp_path):
    assert log_lib.read_rows(tmp_path / "metrics.jsonl") == []


def test_rows_are_plain_json(open_log):
    log = open_log()
    log.lost(1, 0)
    log.step({"loss": 0.5})
    log.write(1, 2)
    (line,) = log.path.read_text().splitlines()
    assert json.loads(line)["data/no_slot_boxes"] == 1

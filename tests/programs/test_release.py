"""The results of the last release, and its command with fake programs."""

import json
import os
import pathlib
import signal
import threading
import time

import pytest

from benchmarks import overfit, release
from detlab import errors

# The committed results


def test_every_case_with_a_model_has_passed(repository, shared_dir):
    settings = release.Settings(shared_dir / "parity", repository / "benchmarks" / "results")
    assert release.wanting(settings, "parity") == []


@pytest.mark.parametrize("step", ["kills", "overfit", "models"])
def test_every_row_of_the_other_steps_has_passed(step, repository):
    settings = release.Settings(pathlib.Path(), repository / "benchmarks" / "results")
    assert release.wanting(settings, step) == []


# The command

CASES = {"a": {"weights": "yolov5a"}, "b": {"weights": "yolov5b"}, "c": {"weights": "yolov5c"}}
NO_MODEL = {"weights": "unheard_of", "source": "a paper"}
MACHINE = {"jax": release.jax_version(), "cores": 2}
LINE = {"quantity": "map a", "error": 1e-6, "tolerance": 1e-4, "note": ""}
MISS = {"quantity": "loss b", "error": 0.25, "tolerance": 1e-3, "note": ""}


class Programs:
    """Fakes the processes: writes the result of each, or fails."""

    def __init__(self):
        self.calls = []  # (module, words) of each call
        self.fails = {}  # name of a row -> how it fails: its lines, an exception, or a sentence
        self.machine = MACHINE

    def __call__(self, module, *words):
        self.calls.append((module, words))
        value = dict(zip(words, words[1:]))
        place = pathlib.Path(value.get("--json") or value["--output"])
        name = value.get("--case") or value.get("--only") or value["--config"]
        end = self.fails.get(name)
        if isinstance(end, BaseException):
            raise end
        if isinstance(end, str):
            return release.Ended(end, 1.0)
        if module == "benchmarks.parity":
            missed = [line["quantity"] for line in end or []]
            row = {"case": name, "status": "failed" if end else "passed", "missed": missed}
            content = {"cases": [{**row, "lines": [LINE, *(end or [])]}]}
        elif module == "benchmarks.kills":
            content = {"config": name, "kills": [{}] * int(value["--kills"]), "violations": []}
        elif module == "benchmarks.overfit":
            place = place / f"overfit_{name}_cpu.json"
            content = {"name": name, "AP50": end or 1.0}
        else:
            content = {"models": {name: {"predict": {}, "train": {}}}}
        place.write_text(json.dumps({"machine": self.machine, **content}))
        return release.Ended("", 1.0)

    @property
    def names(self):
        """Names of the rows that ran."""
        flags = ("--case", "--only", "--config")
        return [
            words[[words.index(x) for x in flags if x in words][0] + 1] for _, words in self.calls
        ]


@pytest.fixture
def programs(monkeypatch):
    fake = Programs()
    monkeypatch.setattr(release, "start", fake)
    return fake


@pytest.fixture
def run(programs, tmp_path, capsys):
    """`run(*words)` -> (exit status, output); cases are in tmp_path/cases."""
    add_cases(tmp_path, CASES)

    def run(*words):
        capsys.readouterr()
        status = 0
        places = ["--fixtures", str(tmp_path / "cases"), "--output", str(tmp_path / "results")]
        try:
            release.main([*places, *words])
        except SystemExit as ended:
            status = ended.code
        return status, capsys.readouterr().out

    return run


def add_cases(tmp_path, cases):
    (tmp_path / "cases").mkdir(exist_ok=True)
    for name, info in cases.items():
        (tmp_path / "cases" / f"{name}.json").write_text(json.dumps(info))
    release.find_cases.cache_clear()


def parity_rows(tmp_path):
    return json.loads((tmp_path / "results" / "release_parity.json").read_text())["cases"]


def test_a_row_is_written_when_it_is_over_and_the_next_start_runs_the_others(
    run, programs, tmp_path
):
    programs.fails["b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run("--only", "parity")
    row = {"status": "passed", "quantities": 1, "missed": {}, "seconds": 1.0}
    assert parity_rows(tmp_path) == {"a": {**row, "jax": release.jax_version()}}

    programs.calls.clear()
    programs.fails.clear()
    assert run("--only", "parity")[0] == 0 and programs.names == ["b", "c"]
    programs.calls.clear()
    assert run("--only", "parity")[0] == 0 and programs.names == []
    assert run("--again", "parity/b")[0] == 0 and programs.names == ["b"]


def test_a_row_that_fails_is_recorded_and_told_and_stops_no_other(run, programs, tmp_path):
    programs.fails.update(a=[MISS], b="a.npz cannot be read: gone.")
    status, text = run("--only", "parity")
    assert status == 1 and programs.names == ["a", "b", "c"]
    rows = parity_rows(tmp_path)
    assert [rows[name]["status"] for name in CASES] == ["failed", "failed", "passed"]
    assert rows["a"]["missed"] == {"loss b": "2.5e-01 > 1.0e-03"} and rows["a"]["quantities"] == 2
    assert rows["b"]["reason"] == "a.npz cannot be read: gone."
    last = text.splitlines()[-3:]
    assert last[0] == "3 rows, 3 run now, 2 missing or failed"
    assert last[1].startswith("parity/a failed: 2 quantities, 1 missed: loss b 2.5e-01")
    assert last[2] == "parity/b failed: a.npz cannot be read: gone."

    programs.calls.clear()
    programs.fails.clear()
    assert run("--only", "parity")[0] == 0 and programs.names == ["a", "b"]


def test_a_result_of_another_jax_is_made_again(run, programs, tmp_path):
    run("--only", "parity")
    rows = parity_rows(tmp_path)
    rows["c"]["jax"] = "0.0.1"
    release.write(tmp_path / "results" / "release_parity.json", {"cases": rows})
    programs.calls.clear()
    _, text = run("--only", "parity", "--list")
    assert "run      parity/c: passed with jax 0.0.1, not" in text and "passed   parity/a" in text
    assert text.endswith("3 rows, 1 to run\n") and not programs.calls
    run("--only", "parity")
    assert programs.names == ["c"]


def test_a_case_without_a_model_is_missing_until_there_is_one(run, programs, tmp_path):
    add_cases(tmp_path, {"d": NO_MODEL})
    settings = release.Settings(tmp_path / "cases", tmp_path / "results")
    assert run("--only", "parity")[0] == 0 and programs.names == ["a", "b", "c"]
    assert parity_rows(tmp_path)["d"]["reason"] == "no model for a paper"
    assert "missing  parity/d" in run("--only", "parity", "--list")[1]
    assert release.wanting(settings, "parity") == []
    add_cases(tmp_path, {"d": {"weights": "yolov5d"}, "e": {"weights": "yolov5e"}})
    first, second = release.wanting(settings, "parity")
    assert "parity/d has a model now" in first and "parity/e has no result" in second
    programs.calls.clear()
    assert run()[0] == 0 and programs.names[:2] == ["d", "e"]


def test_results_of_the_other_steps_are_those_of_their_own_commands(run, programs, tmp_path):
    results = tmp_path / "results"
    programs.fails["fcos"] = 0.5
    assert run("--only", "overfit/fcos", "--only", "overfit/ghm", "--only", "kills")[0] == 1
    fcos = json.loads((results / "overfit_fcos_cpu.json").read_text())
    assert fcos == {"machine": MACHINE, "name": "fcos", "AP50": 0.5}
    settings = release.Settings(tmp_path / "cases", results)
    assert release.wanting(settings, "kills") == []
    lines = release.wanting(settings, "overfit")
    assert "overfit/fcos failed: AP50 0.500, 0.9 is required" in lines
    assert len(lines) == len(overfit.OVERFIT) - 1

    # A row that runs again and fails does not keep its old result.
    programs.fails["ghm"] = "it broke"
    _, text = run("--again", "overfit/ghm")
    assert "it broke" in text and not (results / "overfit_ghm_cpu.json").exists()
    assert run("--only", "kills", "--kills", "30")[0] == 0
    assert len(json.loads((results / "kills_cpu.json").read_text())["kills"]) == 30


def test_a_model_measured_elsewhere_than_the_others_says_where(run, programs, tmp_path):
    run("--only", "models/fcos", "--only", "models/ghm")
    programs.machine = {"jax": release.jax_version(), "cores": 64}
    run("--again", "models/fcos", "--peer_python", "other")
    assert programs.calls[-1][1][2:4] == ("--peer_python", "other")
    result = json.loads((tmp_path / "results" / "models_cpu.json").read_text())
    assert result["machine"] == MACHINE and "machine" not in result["models"]["ghm"]
    assert result["models"]["fcos"]["machine"] == programs.machine
    programs.fails["fcos"] = "it broke"
    assert run("--again", "models/fcos")[0] == 1
    assert list(json.loads((tmp_path / "results" / "models_cpu.json").read_text())["models"]) == [
        "ghm"
    ]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--only", "parrity"], "--only parrity: no such step; did you mean parity?"),
        (["--again", "overfit/fcoss"], "no such detector; did you mean overfit/fcos?"),
        (["--only", "parity/a", "--again", "parity/z"], "--again parity/z: no such case"),
        (["--kills", "3"], "--kills is 3; a release needs at least 24."),
        (["--fixtures", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_what_is_not_there_is_one_sentence_before_anything_runs(words, sentence, run, programs):
    with pytest.raises(errors.UserError, match=sentence):
        run(*words)
    assert not programs.calls


@pytest.mark.parametrize(
    "file, text, step",
    [
        ("release_parity.json", '{"cases": {"a"', "parity"),
        ("release_parity.json", "[]", "parity"),
        ("release_parity.json", '{"cases": {"a": {"status": "passed"}}}', "parity"),
        ("release_parity.json", '{"cases": ["a"]}', "parity"),
        ("overfit_fcos_cpu.json", "3", "overfit/fcos"),
        ("kills_cpu.json", '{"kills": []}', "kills"),
    ],
)
def test_a_damaged_file_of_results_is_one_sentence(file, text, step, run, programs, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / file).write_text(text)
    with pytest.raises(
        errors.UserError, match="results.* restore (it|them), or delete (it|them) to run"
    ) as caught:
        run("--only", step)
    assert "\n" not in str(caught.value) and not programs.calls


# The processes of the command


def test_a_process_that_fails_says_why_in_one_line():
    ended = release.start("json.tool", "nowhere.json")
    assert "nowhere.json" in ended.why and "\n" not in ended.why
    ended = release.start("timeit", "-n1", "-r1", "1 / 0")
    assert ended.why == "timeit ended with status 1: ZeroDivisionError: division by zero"


@pytest.fixture
def interruptible():
    """Restores KeyboardInterrupt on SIGINT, which workers of pytest-xdist ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_process_ends_with_all_that_it_started_when_the_command_is_interrupted(
    tmp_path, interruptible
):
    file = tmp_path / "id"
    program = f"echo $$ > {file}; exec sleep 1000"

    def interrupt():
        while not (file.exists() and file.read_text().endswith("\n")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        shell = f"import subprocess; subprocess.run({['sh', '-c', program]!r})"
        release.start("timeit", "-n1", "-r1", shell)
    status = pathlib.Path(f"/proc/{int(file.read_text())}/stat")
    for _ in range(1000):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        pytest.fail("the process is still alive")

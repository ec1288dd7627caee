"""Tables of test times by folder and detector, from pytest's reports."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from benchmarks import command, test_times
from detlab import errors

EVERYDAY = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" tests="6" time="75.5">
<testcase classname="tests.test_config" name="test_a" time="1.0" />
<testcase classname="tests.ops.test_nms" name="test_b[0.5-retina]" time="2.0" />
<testcase classname="tests.ops.test_nms.TestMany" name="test_c" time="3.0"><failure /></testcase>
<testcase classname="tests.detectors.test_contract" name="test_d[fcos]" time="40.0" />
<testcase classname="tests.detectors.test_darknet_training" name="test_e[yolov3-1]" time="10.0" />
<testcase classname="tests.detectors.test_darknet" name="test_f" time="30.0" />
</testsuite></testsuites>
"""
SLOW = """<testsuites><testsuite time="600">
<testcase classname="tests.programs.test_devices" name="test_g[yolov3]" time="500.0" />
</testsuite></testsuites>
"""


@pytest.fixture
def reports(tmp_path):
    (tmp_path / "everyday.xml").write_text(EVERYDAY)
    (tmp_path / "slow.xml").write_text(SLOW)
    return tmp_path


def test_seconds_are_summed_by_folder_and_by_detector(reports):
    part = test_times.summarise(test_times.read(reports / "everyday.xml"))
    assert (part["wall_s"], part["tests"], part["worker_s"]) == (76, 6, 86.0)
    assert part["folders"] == {
        "tests": {"tests": 1, "worker_s": 1.0},
        "tests/detectors": {"tests": 3, "worker_s": 80.0},
        "tests/ops": {"tests": 2, "worker_s": 5.0},
    }
    assert part["detectors"] == {
        "darknet": {"tests": 2, "worker_s": 40.0},
        "fcos": {"tests": 1, "worker_s": 40.0},
    }


@pytest.mark.parametrize(
    "file, name, detector",
    [
        ("tests/parity/adapters/test_faster_rcnn.py", "test_x", "faster_rcnn"),
        ("tests/parity/test_darknet.py", "test_x[yolov3]", "darknet"),
        ("tests/detectors/test_contract.py", "test_x[float32-yolov5]", "yolov5"),
        ("tests/experiments/test_configs.py", "test_x[fcos_coco:scratch]", "fcos"),
        ("tests/experiments/test_configs.py", "test_x[retinanets]", ""),
        ("tests/ops/test_nms.py", "test_fcos", ""),
    ],
)
def test_a_test_costs_the_detector_of_its_file_or_else_of_a_parameter(file, name, detector):
    known = list(command.detector_files())
    assert {"retinanet", "yolov3", "yolov5"} <= set(known)
    assert test_times.detector_of(test_times.Test(file, name, 1.0), known) == detector


def test_tables_and_the_slowest_tests_are_printed_and_figures_written(reports, capsys):
    words = ["--everyday", str(reports / "everyday.xml"), "--slow", str(reports / "slow.xml")]
    output = reports / "times.json"
    test_times.main([*words, "--slowest", "2", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "| tests/detectors | 3 | 80 |  |  |" in printed
    assert "| yolov3 |  |  | 1 | 500 |" in printed
    listed = [line.split()[1] for line in printed.splitlines() if "::" in line]
    assert listed == [
        "tests/detectors/test_contract.py::test_d[fcos]",
        "tests/detectors/test_darknet.py::test_f",
        "tests/programs/test_devices.py::test_g[yolov3]",
    ]
    figures = json.loads(output.read_text())
    assert figures["slow"]["wall_s"] == 600 and figures["machine"]["cores"] > 0
    assert test_times.tables(figures) in printed


def test_what_moved_by_more_than_a_tenth_is_told(reports, capsys):
    """The change must also exceed five seconds."""
    output = str(reports / "times.json")
    words = ["--everyday", str(reports / "everyday.xml")]
    test_times.main([*words, "--output", output])
    capsys.readouterr()
    test_times.main([*words, "--compare", output])
    assert "No time differs from" in capsys.readouterr().out
    text = EVERYDAY.replace('time="40.0"', 'time="46.0"').replace('time="2.0"', 'time="4.0"')
    (reports / "everyday.xml").write_text(text)
    test_times.main([*words, "--slow", str(reports / "slow.xml"), "--compare", output])
    _, _, told = capsys.readouterr().out.partition("Times that differ from")
    assert told.splitlines()[1:] == [
        "everyday fcos: 40 -> 46 worker-seconds, 1 -> 1 tests",
        "slow: no earlier times",
    ]


def test_what_is_no_report_and_no_figures_is_one_sentence(reports):
    """The tables are printed before the file to compare with is read."""
    report = ["--everyday", str(reports / "everyday.xml")]
    damaged = reports / "damaged"
    damaged.write_text("{<")
    empty = reports / "empty.xml"
    empty.write_text("<testsuites />")
    for words, sentence in [
        ([], "no report is given; use --everyday, --slow, or both."),
        (["--slow", "nowhere.xml"], "nowhere.xml cannot be read: No such file"),
        (["--slow", str(damaged)], "damaged is not a pytest report"),
        (["--slow", str(empty)], "empty.xml has no tests"),
        ([*report, "--compare", "nowhere.json"], "nowhere.json cannot be read"),
        ([*report, "--compare", str(damaged)], "damaged is not JSON"),
    ]:
        with pytest.raises(errors.UserError, match=sentence):
            test_times.main(words)


def test_a_real_report_is_read(tmp_path):
    folder = tmp_path / "tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_a.py").write_text("class TestX:\n    def test_y(self):\n        pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.xml"
    words = [sys.executable, "-m", "pytest", "--import-mode=importlib", "--junitxml", str(report)]
    environment = {key: x for key, x in os.environ.items() if key != "PYTEST_ADDOPTS"}
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)
    part = test_times.read(report)
    assert [test[:2] for test in part.tests] == [("tests/ops/test_a.py", "test_y")]
    assert part.wall_s > 0


# A fake Python and pip: records each call; as pytest it writes a report and exits with a given
# status.
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && touch "$3/bin/activate" ;;
  "-m pytest "*)
    for word in $PYTEST_ADDOPTS; do
      case "$word" in --junitxml=*) echo report > "${word#--junitxml=}" ;; esac
    done
    case "$*" in *"not slow"*) exit "$EVERYDAY" ;; *) exit "$SLOW" ;; esac ;;
esac
"""
TESTS = ["python -m pytest -m not slow -n 2 --dist worksteal"]
TESTS += ["python -m pytest -m slow -n 2 --dist worksteal"]


@pytest.mark.parametrize(
    "everyday, slow, status, ran", [(0, 0, 0, 2), (0, 1, 1, 2), (1, 0, 1, 1), (5, 0, 5, 1)]
)
def test_the_check_runs_the_readmes_command_and_tells_times_whatever_failed(
    everyday, slow, status, ran, repository, tmp_path
):
    (tmp_path / "bin").mkdir()
    for name in ("python", "python3", "pip", "ruff"):
        stub = tmp_path / "bin" / name
        stub.write_text(STUB)
        stub.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(repository / ".ci" / "run", tmp_path / ".ci")
    shutil.copy(repository / "README.md", tmp_path)
    calls = tmp_path / "calls"
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment |= {"CALLS": str(calls), "EVERYDAY": str(everyday), "SLOW": str(slow)}
    environment |= {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    *before, told = calls.read_text().splitlines()
    assert [call for call in before if "-m pytest" in call] == TESTS[:ran]
    assert "pip install -e .[test]" in before
    assert told.startswith("python -m benchmarks.test_times --everyday ")
    assert ("--slow " in told) is (ran == 2) and "--compare benchmarks/results/" in told
    assert re.search(r"^installation: \d+ s; everything: \d+ s$", done.stdout, re.MULTILINE)
    assert not list(tmp_path.glob("tmp.*")), "the temporary folder must be removed"

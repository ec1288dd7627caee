"""Runs that are killed or whose disk fails: what they resume to, and what they leave behind."""

import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import kills
from detlab import train
from detlab.run import checkpoint

KILLED_AT = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_config):
    """The tiny config with averaged weights, and a log row for each step."""
    path = tmp_path_factory.mktemp("configs") / "averaged.py"
    text = pathlib.Path(tiny_config).read_text()
    assert text.count("    return config") == 1
    changes = "    config.train.log_every = 1\n    config.optim.ema_decay = 0.9\n"
    path.write_text(text.replace("    return config", changes + "    return config"))
    return str(path)


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    train.main(["--config", config, "--workdir", str(workdir)])
    return workdir


def start(config, workdir, *more):
    command = [sys.executable, "-m", "detlab.train", "--config", config]
    return launch([*command, "--workdir", str(workdir), *more])


def launch(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def everything(workdir):
    """(Arrays of the last step, metrics, rows of the log) of a finished run."""
    folder = checkpoint.find(workdir, "last")
    items = [checkpoint.read_arrays(folder / item) for item in ("weights", "training")]
    return items, json.loads((workdir / "eval.json").read_text()), kills.rows(workdir)


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """`killed(threads)` -> a workdir whose process, with these threads, was killed after step 4."""
    made = {}

    def killed(threads):
        if threads not in made:
            workdir = tmp_path_factory.mktemp("runs") / f"killed{threads}"
            process = start(config, workdir, f"--config.data.read_threads={threads}")
            while not (workdir / "checkpoints" / str(KILLED_AT)).exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
            made[threads] = workdir
        return made[threads]

    return killed


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(0, 2), (0, 0), (1, 1), (2, 2), (2, 1)])
def test_a_killed_run_comes_to_the_same_bits_with_any_number_of_read_threads(
    before, after, killed, unbroken, config, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(killed(before), workdir)
    step = checkpoint.latest_step(workdir)
    arguments = ["--config", config, "--workdir", str(workdir)]
    train.main([*arguments, f"--config.data.read_threads={after}"])
    assert f"resuming {workdir} at step {step} of 6" in capsys.readouterr().out
    items, figures, rows = everything(workdir)
    whole_items, whole_figures, whole_rows = everything(unbroken)
    assert kills.bit_equal(items, whole_items)
    assert {"params", "state", "opt_state", "step"} == set(items[1]), "the average is in `weights`"
    assert not kills.bit_equal(items[0]["params"], items[1]["params"])
    assert figures == whole_figures and rows == whole_rows


@pytest.mark.slow
def test_no_kill_of_six_loses_a_checkpoint_or_changes_a_bit(tmp_path):
    """A release must survive many more; every third kill comes during a write."""
    kills.main(["--kills", "6", "--seed", "1", "--json", str(tmp_path / "kills.json")])
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["violations"] == [] and len(result["kills"]) >= 6
    assert sum(kill["temporary"] for kill in result["kills"]) >= 2
    assert all(kill["resumed"] is not None for kill in result["kills"])


# Failing disks


def assert_one_sentence(process, words):
    output, error = process.communicate(timeout=300)
    assert process.returncode == 2, error
    sentences = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in error + output and len(sentences) == 1, error
    for word in words:
        assert word in sentences[0]


LONG = ("--config.train.steps=100000", "--config.train.eval_every=100000")


@pytest.mark.slow
@pytest.mark.parametrize(
    "log_every, words",
    [(1, ["cannot write the log"]), (100000, ["cannot write a checkpoint into"])],
)
def test_files_that_may_not_grow_end_a_run_with_one_sentence_and_the_last_checkpoint_stays(
    log_every, words, config, tmp_path
):
    """A limit on file size, which applies to root too, set during the run."""
    options = [
        *LONG,
        "--config.train.checkpoint_every=100",
        f"--config.train.log_every={log_every}",
    ]
    process = start(config, tmp_path, *options)
    while (checkpoint.latest_step(tmp_path) or 0) < 100:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    limit = (tmp_path / "metrics.jsonl").stat().st_size + 3000
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    assert_one_sentence(process, [*words, str(tmp_path), "File too large", "with the same command"])
    step = checkpoint.latest_step(tmp_path)
    assert checkpoint.load_weights(tmp_path, "last").info["step"] == step
    assert not kills.temporary_folders(tmp_path)
    again = start(config, tmp_path, *options)
    for line in again.stdout:
        if line.startswith("resuming"):
            break
    again.kill()
    again.communicate()
    assert f"at step {step} of" in line


# Mounts a private small disk, trains there, and copies the result to a place that outlives it.
ON_A_SMALL_DISK = """
mkdir -p "$0" && mount -t tmpfs -o size=3500k tmpfs "$0" || exit 99
status=0
"$@" --workdir "$0/run" || status=$?
cp -r "$0/run" "$0.left"
exit $status
"""


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_sentence_and_the_last_checkpoint_stays(config, tmp_path):
    """A real small disk if the user may mount one, else a limit on file size."""
    train_there = [sys.executable, "-m", "detlab.train", "--config", config, *LONG]
    folder = str(tmp_path / "disk")
    may_mount = shutil.which("unshare") and not subprocess.call(["unshare", "-rm", "true"])
    if may_mount:
        command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, folder, *train_there]
        words = ["No space left on device", "kept"]  # from a checkpoint or the log
    else:
        limited = 'ulimit -f 40 && exec "$@" --workdir "$0.left"'
        command = ["sh", "-c", limited, folder, *train_there]
        words = ["File too large"]
    process = launch(command)
    assert_one_sentence(process, ["cannot write", *words])
    left = tmp_path / "disk.left"
    assert not kills.temporary_folders(left)
    if may_mount:
        assert checkpoint.load_weights(left, "last").info["step"] == checkpoint.latest_step(left)


@pytest.mark.slow
def test_a_workdir_that_cannot_be_made_is_told_in_one_sentence(config):
    """Not even root can create folders in /proc."""
    process = start(config, "/proc/detlab")
    assert_one_sentence(process, ["cannot write /proc/detlab"])

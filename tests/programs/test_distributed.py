"""Two processes on loopback train, evaluate, save and resume like one."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import cv2
import jax
import numpy as np
import pytest

from detlab import data_sets, distributed, errors, train
from detlab.data import shapes, wrappers
from detlab.run import checkpoint
from detlab.run import log as log_lib

CHANGES = """
    config.model.num_classes = 2
    config.data.update(
        source="coco",
        root={root!r},
        train_images="images",
        train_annotations="train.json",
        eval_images="images",
        eval_annotations="eval.json",
        canvases=((64, 96), (96, 64)),
        max_boxes=2,  # some images have three
        min_side=1,
    )
    config.train.update(steps=8, eval_every=4)
    config.optim.ema_decay = 0.9
    config.eval.update(batch_size=4, pictures=1)
    return config
"""
LANDSCAPE, PORTRAIT = (64, 96), (96, 64)


def write_part(folder, name, sizes, first_id):
    """Writes a COCO file and its pictures, of one to three rectangles each."""
    rng = np.random.default_rng(first_id)
    images, annotations = [], []
    for i, (height, width) in enumerate(sizes, start=first_id):
        picture = np.full((height, width, 3), 90, np.uint8)
        for _ in range(1 + i % 3):
            label = int(rng.integers(2))
            side = rng.integers(16, 32, 2)
            x, y = rng.integers((0, 0), (width - side[0], height - side[1]))
            colour = ((255, 0, 0), (0, 255, 0))[label]
            cv2.rectangle(picture, (int(x), int(y), int(side[0]), int(side[1])), colour, -1)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=label + 1,
                    bbox=[int(x), int(y), int(side[0]), int(side[1])],
                    area=int(side.prod()),
                    iscrowd=0,
                )
            )
        (folder / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), picture)
        images.append(dict(id=i, file_name=f"{i}.png", height=height, width=width))
    categories = [dict(id=1, name="blue"), dict(id=2, name="green")]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_config):
    """The path of the tiny config with portrait and landscape images as its data."""
    folder = tmp_path_factory.mktemp("mixed")
    write_part(folder, "train", [LANDSCAPE] * 9 + [PORTRAIT] * 5, first_id=1)
    write_part(folder, "eval", [PORTRAIT] * 5 + [LANDSCAPE] * 2, first_id=101)
    path = folder / "mixed.py"
    changes = CHANGES.replace("{root!r}", repr(str(folder)))
    text = pathlib.Path(tiny_config).read_text()
    path.write_text(text.replace("    return config\n", changes))
    return str(path)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The workdir of a run on one process."""
    workdir = tmp_path_factory.mktemp("alone")
    train.main(["--config", config, "--workdir", str(workdir)])
    return workdir


class Pair:
    """Two processes of one run; `own` are additional arguments of each."""

    def __init__(self, module, arguments, own=((), ()), **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        flags = ["--distributed", "--num_processes=2", f"--coordinator=127.0.0.1:{port}"]
        # Files, because a full pipe that no test reads would block the process.
        self._outputs = [(tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")) for _ in own]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments, *own[i], *flags, f"--process_id={i}"],
                env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
                stdout=self._outputs[i][0],
                stderr=self._outputs[i][1],
            )
            for i in range(2)
        ]

    def finish(self, timeout=240):
        """[(status, stdout, stderr)] of both processes, which are killed if still running."""
        try:
            statuses = [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        results = []
        for status, files in zip(statuses, self._outputs):
            texts = []
            for file in files:
                file.seek(0)
                texts.append(file.read())
                file.close()
            results.append((status, *texts))
        return results

    def wait_for_step(self, workdir, step):
        while not any(r["step"] >= step for r in log_lib.read_rows(workdir / "metrics.jsonl")):
            assert all(p.poll() is None for p in self.processes), self.finish()
            time.sleep(0.02)


def rows(workdir, prefix):
    """{step: {key: value}} of the log, without values that depend on time."""
    found = {}
    for row in log_lib.read_rows(workdir / "metrics.jsonl"):
        values = {k: v for k, v in row.items() if k.startswith(prefix) and "second" not in k}
        if values:
            found[row["step"]] = values
    return found


def assert_same_run(workdir, other):
    """Compares numbers up to the order of sums, which depends on the number of processes.

    1e-4: eight steps of Adam amplify differences of 1e-7; the data must be bit-equal.
    """
    assert rows(workdir, "data/") == rows(other, "data/")
    ours, theirs = rows(workdir, "train/"), rows(other, "train/")
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        assert ours[step] == pytest.approx(values, rel=1e-4), step
    one, two = (checkpoint.load_weights(w, "last") for w in (workdir, other))
    for a, b in zip(
        jax.tree.leaves((one.params, one.state)), jax.tree.leaves((two.params, two.state))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    figures = [json.loads((w / "eval.json").read_text()) for w in (workdir, other)]
    for row, row_other in zip(*(f["classes"] for f in figures)):
        assert row["num_detections"] == row_other["num_detections"] > 0


@pytest.mark.slow
def test_two_processes_train_evaluate_and_save_as_one_does(config, alone, tmp_path):
    (status, output, problems), (status_1, output_1, problems_1) = Pair(
        "detlab.train", ["--config", config, "--workdir", str(tmp_path)]
    ).finish()
    assert status == status_1 == 0, (problems, problems_1)
    assert "devices: 2 x" in output and "in 2 processes" in output
    assert "COCO" in output and output_1 == ""  # only the first process prints
    assert_same_run(tmp_path, alone)
    assert rows(alone, "data/")[8]["data/no_slot_boxes"] > 0  # from either process
    assert (tmp_path / "pictures" / "contact_sheet.png").exists()

    # Two processes evaluate the finished workdir like one.
    (status, output, problems), _ = Pair(
        "detlab.eval",
        ["--workdir", str(tmp_path), "--json", str(tmp_path / "again.json")],
        JAX_LOG_COMPILES="1",
    ).finish()
    assert status == 0, problems
    # One program per shape gathers the detections, not one per batch.
    assert 0 < problems.count("Finished XLA compilation of jit(gather_rows)") <= 2
    again = json.loads((tmp_path / "again.json").read_text())
    bounds = {"config.model.candidates_per_level": dict(keeps=50, exceeded_on=7, images=7)}
    assert again["bounds"] == bounds, "counts of both processes, without filler rows"
    assert json.loads((alone / "eval.json").read_text())["bounds"] == bounds
    assert again["AP"] == pytest.approx(
        checkpoint.load_weights(tmp_path, "best").info["metrics"]["AP"], abs=1e-6
    )


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step_and_one_alone_resumes(config, alone, tmp_path):
    arguments = ["--config", config, "--workdir", str(tmp_path)]
    pair = Pair("detlab.train", arguments)
    pair.wait_for_step(tmp_path, 2)
    pair.processes[1].send_signal(signal.SIGTERM)
    (status, output, problems), (status_1, _, problems_1) = pair.finish()
    assert status == status_1 == 0, (problems, problems_1)
    stopped = checkpoint.latest_step(tmp_path)
    found = re.search(r"stopped by a signal to another process at step (\d+) of 8", output)
    assert int(found[1]) == stopped < 8
    train.main(arguments)
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_with_a_sentence_and_both_resume(
    victim, config, alone, tmp_path
):
    arguments = ["--config", config, "--workdir", str(tmp_path)]
    pair = Pair("detlab.train", arguments)
    pair.wait_for_step(tmp_path, 4)
    pair.processes[victim].kill()
    killed = time.time()
    status, _, problems = pair.finish()[1 - victim]
    assert time.time() - killed < distributed.HEARTBEAT_S + 30
    assert status != 0, "the process ended before the other was killed"
    assert "error: another process of this run has ended" in problems
    assert "Traceback" not in problems
    assert checkpoint.latest_step(tmp_path) >= 2
    results = Pair("detlab.train", arguments).finish()
    assert [r[0] for r in results] == [0, 0], results
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_a_fault_in_the_data_of_one_process_is_told_by_it_and_ends_both(config, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(pathlib.Path(config).parent, folder)
    (folder / "images" / "3.png").write_bytes(b"no image")
    arguments = ["--config", config, "--workdir", str(tmp_path / "run")]
    arguments += [f"--config.data.root={folder}", "--config.data.skip_broken=False"]
    results = Pair("detlab.train", arguments).finish()
    assert all(status != 0 for status, _, _ in results)
    told = ["3.png cannot be decoded" in problems for _, _, problems in results]
    assert sorted(told) == [False, True]
    assert "another process of this run has ended" in results[told.index(False)][2]


@pytest.mark.parametrize(
    "own",
    [
        "--config.optim.lr=0.5",
        pytest.param("--config.data.train_annotations=eval.json", marks=pytest.mark.slow),
    ],
)
def test_processes_of_other_configs_are_refused(own, config, tmp_path):
    arguments = ["--config", config, "--workdir", str(tmp_path / "run")]
    assert_refused(Pair("detlab.train", arguments, ((), [own])), "differ in config;")


@pytest.mark.slow
def test_a_workdir_that_only_one_process_sees_is_refused(config, alone, tmp_path):
    """A finished workdir that the other process does not see."""
    own = ["--workdir", str(alone)], ["--workdir", str(tmp_path / "elsewhere")]
    assert_refused(Pair("detlab.train", ["--config", config], own), "differ in workdir;")


def assert_refused(pair, words):
    for status, _, problems in pair.finish():
        assert status == 2 and words in problems and "Traceback" not in problems, problems


def test_sources_of_other_images_have_other_fingerprints():
    whole = shapes.Shapes("val")
    part = wrappers.Filtered(whole, range(len(whole) - 1))
    swapped = wrappers.Filtered(whole, [1, 0, *range(2, len(whole))])
    found = [data_sets.fingerprint(source) for source in (whole, part, swapped)]
    assert found[0] == data_sets.fingerprint(shapes.Shapes("val"))
    assert found[0] != found[1] and found[0] != found[2]


def test_a_signal_before_training_ends_the_process(config):
    """jax's handler, installed on joining, must not swallow it."""
    code = (
        "import os, signal, sys; from detlab import data_sets, distributed, train;"
        "data_sets.open_source = lambda *_: os.kill(os.getpid(), signal.SIGTERM);"
        "distributed.run_main(train.main)"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--distributed", "--num_processes=1", "--process_id=0"]
    flags += [f"--coordinator=127.0.0.1:{port}", "--config", config, "--dry_run"]
    done = subprocess.run([sys.executable, "-c", code, *flags], timeout=120, check=False)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--coordinator=a:1"], "need --distributed; add it"),
        (["--distributed", "--process_id=0"], "--process_id must be given together"),
        (
            ["--distributed", "--coordinator=here", "--num_processes=2", "--process_id=0"],
            "it must be host:port",
        ),
        (
            ["--distributed", "--coordinator=h:99999", "--num_processes=2", "--process_id=0"],
            "it must be host:port",
        ),
        (
            ["--distributed", "--coordinator=h:1", "--num_processes=2", "--process_id=2"],
            "--process_id is 2; it must be at least 0 and below --num_processes, 2.",
        ),
    ],
)
def test_flags_that_cannot_be_get_a_sentence(arguments, words, config):
    with pytest.raises(errors.UserError, match=words):
        train.main(["--config", config, *arguments])


def test_without_a_cluster_the_flags_are_asked_for(config):
    command = [sys.executable, "-m", "detlab.train", "--config", config, "--distributed"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "finds no Slurm, Open MPI or TPU pod here" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "numbers, status",
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGTERM, signal.SIGINT), 130),
    ],
)
def test_a_second_signal_ends_a_run_at_once_but_not_a_repetition(numbers, status, monkeypatch):
    left, clock = [], iter((0.0, 0.05, 0.5))
    monkeypatch.setattr(errors, "leave", lambda *arguments: left.append(arguments))
    monkeypatch.setattr(distributed.time, "monotonic", lambda: next(clock))
    first, second = numbers
    with distributed.StopSignals() as stop:
        for number in (first, first, second):  # `timeout` sends each signal twice
            assert not left
            signal.raise_signal(number)
        assert stop() and stop.name == first.name
    word = f"ended by a second signal, {second.name}; what was saved stays"
    assert left == [(status, word)]

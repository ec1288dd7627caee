"""Two processes on loopback that train, evaluate, save and resume as one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from detlab import checkpoint
from detlab import distributed
from detlab import errors
from detlab import run_log
from detlab import train

CONFIG = """
from ml_collections import ConfigDict

from experiments import common


def get_config():
    config = common.base("retinanet")
    config.model = ConfigDict(
        dict(
            num_classes=2,
            depth=18,
            backbone_width=8,
            backbone_stages=(1, 1, 1, 1),
            neck_width=16,
            head_width=16,
            head_convs=1,
            octave_base_scale=3.0,
            score_threshold=0.0,
        )
    )
    common.from_scratch(config)
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
    config.train.update(batch_size=4, steps=8, log_every=2, eval_every=4, checkpoint_every=2)
    config.optim.update(name="adamw", lr=1e-3, lr_batch_size=4, schedule="cosine", warmup_steps=2)
    config.optim.ema_decay = 0.9
    config.eval.update(batch_size=4, pictures=1)
    return config
"""
LANDSCAPE, PORTRAIT = (64, 96), (96, 64)


def write_part(folder, name, sizes, first_id):
    """A COCO file of pictures of one to three rectangles."""
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
def config(tmp_path_factory):
    """The path of the config; its data are portraits and landscapes."""
    folder = tmp_path_factory.mktemp("mixed")
    write_part(folder, "train", [LANDSCAPE] * 9 + [PORTRAIT] * 5, first_id=1)
    write_part(folder, "eval", [PORTRAIT] * 5 + [LANDSCAPE] * 2, first_id=101)
    path = folder / "mixed.py"
    path.write_text(CONFIG.replace("{root!r}", repr(str(folder))))
    return str(path)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The workdir of the run of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    train.main(["--config", config, "--workdir", str(workdir)])
    return workdir


class Pair:
    """Two processes of one run."""

    def __init__(self, module, arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", module, *arguments, "--distributed", "--num_processes=2"]
        command += [f"--coordinator=127.0.0.1:{port}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self.processes = [
            subprocess.Popen(
                [*command, f"--process_id={i}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]

    def finish(self, timeout=240):
        """[(status, stdout, stderr)] of both; neither is left running."""
        try:
            outputs = [p.communicate(timeout=timeout) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, *output) for p, output in zip(self.processes, outputs)]

    def wait_for_step(self, workdir, step):
        while not any(r["step"] >= step for r in run_log.read_rows(workdir / "metrics.jsonl")):
            assert all(p.poll() is None for p in self.processes), self.finish()
            time.sleep(0.02)


def rows(workdir, prefix):
    """{step: {key: value}} of the log, without what depends on time."""
    found = {}
    for row in run_log.read_rows(workdir / "metrics.jsonl"):
        values = {k: v for k, v in row.items() if k.startswith(prefix) and "second" not in k}
        if values:
            found[row["step"]] = values
    return found


def assert_same_run(workdir, other):
    """Equal numbers up to the order of sums, which differs between numbers of processes.

    1e-4: eight steps of Adam carry differences of 1e-7 on; the data must be equal to the last bit.
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


def test_two_processes_train_evaluate_and_save_as_one_does(config, alone, tmp_path):
    (status, output, problems), (status_1, output_1, problems_1) = Pair(
        "detlab.train", ["--config", config, "--workdir", str(tmp_path)]
    ).finish()
    assert status == status_1 == 0, (problems, problems_1)
    assert "devices: 2 x" in output and "in 2 processes" in output
    assert "COCO" in output and output_1 == ""  # one voice
    assert_same_run(tmp_path, alone)
    assert rows(alone, "data/")[8]["data/no_slot_boxes"] > 0  # seen by whichever process
    assert (tmp_path / "pictures" / "contact_sheet.png").exists()

    # The finished workdir is evaluated by two processes as by one.
    (status, output, problems), _ = Pair(
        "detlab.eval", ["--workdir", str(tmp_path), "--json", str(tmp_path / "again.json")]
    ).finish()
    assert status == 0, problems
    again = json.loads((tmp_path / "again.json").read_text())
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
    if stopped < 8:  # a quick machine may have been past the last step
        found = re.search(r"stopped by a signal to another process at step (\d+) of 8", output)
        assert int(found[1]) == stopped
    train.main(arguments)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
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
    if status == 0:
        assert checkpoint.latest_step(tmp_path) == 8  # a quick machine was done before
        return
    assert "error: another process of this run has ended" in problems
    assert "Traceback" not in problems
    assert checkpoint.latest_step(tmp_path) >= 2
    results = Pair("detlab.train", arguments).finish()
    assert [r[0] for r in results] == [0, 0], results
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--coordinator=a:1"], "go with --distributed; add it"),
        (["--distributed", "--process_id=0"], "give all of --coordinator"),
        (
            ["--distributed", "--coordinator=here", "--num_processes=2", "--process_id=0"],
            "it must be host:port",
        ),
        (
            ["--distributed", "--coordinator=h:1", "--num_processes=2", "--process_id=2"],
            "ids count from 0",
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
    assert "finds neither Slurm nor Open MPI nor a TPU pod here" in result.stderr
    assert "Traceback" not in result.stderr

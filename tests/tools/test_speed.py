"""The tool that times stages: figures from given times, then all stages of a small detector."""

import json

import numpy as np
import pytest

from detlab import errors
from detlab.tools import speed

TINY = ["--config=retinanet_shapes:tiny", "--config.model.num_classes=4", "--config.train.steps=1"]
PROGRAMS = {
    "forward": speed.Program(None, 2.0, 4e9, 3 * 2**20),
    "candidates": speed.Program(None, 1.0, None, 2**20),
    "suppress": speed.Program(None, 0.5, 2e6, 2**20),
}


def block(forward=0.004):
    """Two images a batch: a first run, then four."""
    times = {stage: np.array([9.0, 0.002, 0.002, 0.002, 0.002]) for stage in speed.STAGES}
    times["forward"] = np.array([9.0, forward, forward, forward, 0.1])
    return speed.block(PROGRAMS, times, {"candidates": 7, "detections": 3}, size=2)


def test_times_are_of_an_image_and_leave_the_first_run_out():
    found = block()
    assert found["stages"]["read"]["median_ms"] == pytest.approx(1)
    forward = found["stages"]["forward"]
    assert forward["median_ms"] == pytest.approx(2)
    assert forward["p99_ms"] == pytest.approx(2 + 48 * 0.97)  # between 2 and 50 ms
    assert forward["share"] == pytest.approx(2 / 9)
    assert found["stages"]["all"]["median_ms"] == pytest.approx(9)
    assert found["images_per_second"] == pytest.approx(1000 / 9)
    assert found["images_per_second_of_device_stages"] == pytest.approx(1000 / 4)
    assert found["first_run_s"]["forward"] == 9
    assert found["gflops_per_image"] == {"forward": 2, "candidates": None, "suppress": 0.001}
    assert found["peak_mib"]["forward"] == 3 and found["candidates_per_image"] == 7


def test_a_slower_stage_is_a_wider_bar():
    def widths(blocks):
        figure = speed.draw(blocks, "title")
        return [bar.get_width() for bar in figure.axes[0].patches]

    quick, slow = (widths({"2": block(forward)}) for forward in (0.004, 0.008))
    number = speed.STAGES.index("forward")
    assert (quick[number], slow[number]) == (pytest.approx(2), pytest.approx(4))
    assert quick[:number] == slow[:number] and len(quick) == len(speed.STAGES)


def test_the_clock_gives_each_stage_the_time_since_the_last(monkeypatch):
    now = iter([10.0, 10.5, 10.5, 12.5, 12.5])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    clock = speed.Clock(("a", "b"))
    clock.start()
    clock.stop("a")
    clock.stop("b")
    assert {k: v.tolist() for k, v in clock.seconds().items()} == {"a": [0.5], "b": [2.0]}


def run(folder, *words):
    speed.main([*TINY, *words, f"--output={folder}"])
    return json.loads((folder / "speed.json").read_text())


def test_all_stages_of_a_detector_are_timed(tmp_path):
    found = run(tmp_path, "--batch=2", "--runs=2", "--limit=3")
    assert found["inputs"]["canvas"] == [64, 96]
    results = found["results"]
    (batch,) = results["batches"].values()
    assert list(batch["stages"]) == [*speed.STAGES, "all"]
    assert all(row["p99_ms"] >= row["median_ms"] > 0 for row in batch["stages"].values())
    shares = sum(batch["stages"][stage]["share"] for stage in speed.STAGES)
    assert shares == pytest.approx(1, abs=1e-4)
    assert batch["gflops_per_image"]["forward"] > 0.001 and results["parameters"] > 1000
    assert results["environment"]["packages"]["jax"] and results["dtype"] == "float32"
    assert (tmp_path / "speed.png").stat().st_size > 5000


@pytest.mark.slow
def test_images_of_a_folder_and_noise_are_timed_too(tmp_path, shared_dir):
    folder = shared_dir / "data" / "bccd" / "JPEGImages"
    for images, data in ((str(folder), "images of JPEGImages"), ("random", "random images")):
        found = run(tmp_path, "--batch=1", "--runs=2", "--limit=2", f"--images={images}")
        assert found["inputs"]["data"] == data and found["inputs"]["images"] == 2


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--batch=0"], "--batch is '0'; it must be numbers of images separated by commas"),
        (["--batch=a"], "--batch is 'a'; it must be numbers of images separated by commas"),
        (["--runs=1"], "--runs is 1; it must be at least 2."),
        (["--images=none"], "--images none does not exist and matches no files; name an image"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, words, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        run(tmp_path, *words)

"""The benchmarks run and write what docs/performance.md quotes; the numbers are not tested."""

import json
import shutil

import pytest

from benchmarks import experiment, kills, memory, train_step


def test_a_finished_run_is_summarised_without_paths(tiny_run):
    result = experiment.summarise(tiny_run)
    assert round(result["figures"]["AP"], 4) == result["curve"]["eval"][-1]["eval/AP"]
    assert [row["step"] for row in result["curve"]["eval"]] == [3, 6]
    assert result["seed"] == 0 and result["config"]["detector"] == "retinanet"
    assert str(tiny_run) not in json.dumps(result)


@pytest.mark.slow
def test_the_training_step_is_compared_with_xlas_own_gradients(tiny_config, tmp_path):
    output = tmp_path / "result.json"
    train_step.main(["--config", tiny_config, "--repeats", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["ratio_median_s"] > 0 and result["native"]["median_s"] > 0


@pytest.mark.slow
def test_memory_of_a_run_is_sampled_tabulated_and_drawn(tiny_config, tmp_path, capsys):
    output, picture = tmp_path / "memory.json", tmp_path / "memory.png"
    arguments = ["--config", tiny_config, "--config.eval.pictures=0", "--every", "0.05"]
    memory.main([*arguments, "--json", str(output), "--picture", str(picture)])
    result = json.loads(output.read_text())
    assert result["warm_step"] == 1000 and result["flat"] is None, "six steps are too few to judge"
    assert "too few samples" in capsys.readouterr().out
    samples = [memory.Sample(**sample) for sample in result["samples"]]
    assert samples[-1].step == 6 and samples[-1].compiled >= 3  # init, update, predict
    assert all(50 < sample.process < 50_000 for sample in samples)
    assert max(sample.arrays for sample in samples) > 0.1
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    "growth, compiled, flat", [(0.0, 0, True), (10.0, 0, True), (40.0, 0, False), (0.0, 1, False)]
)
def test_memory_is_flat_where_it_grows_little_and_nothing_is_compiled(growth, compiled, flat):
    """1000 MiB may grow by 20 in 1000 steps; samples before the warm step are excluded."""
    samples = [memory.Sample(0.0, 0, 10.0, 0.0, None, None, 0)]
    samples += [
        memory.Sample(
            step, step, 1000 + growth * step / 1000, 30.0, None, None, 5 + compiled * (step > 800)
        )
        for step in range(500, 2001, 10)
    ]
    result = memory.summarise(samples, warm=500, total=2000)
    assert result["flat"] is flat and result["compiled_after"] == compiled
    assert result["memory"]["process"]["mib_per_1000_steps"] == pytest.approx(growth, abs=0.01)
    assert "device" not in result["memory"], "a CPU has no allocator statistics"
    assert ("NOT flat" in memory.verdict(result)) is not flat


@pytest.mark.slow
def test_a_run_that_was_tampered_with_is_a_violation(tiny_run, tmp_path):
    """`kills` sees every difference from the uninterrupted run."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    seen = kills.complete_steps(tiny_run)
    seen["best"] = set()  # the benchmark's uninterrupted run keeps every step in `checkpoints`
    assert kills.lost_checkpoints(tiny_run, workdir, seen) == []
    assert kills.different_runs(tiny_run, workdir) == []
    (workdir / "checkpoints" / "2" / "weights").mkdir(parents=True)
    left = ["checkpoints/2 was replaced and not deleted"]
    assert kills.different_runs(tiny_run, workdir) == left
    shutil.rmtree(workdir / "checkpoints" / "2")
    shutil.copy(workdir / "config.json", workdir / "eval.json")
    (workdir / "metrics.jsonl").write_text("")
    assert kills.different_runs(tiny_run, workdir) == [
        "eval.json differs",
        "the rows of metrics.jsonl differ",
    ]
    shutil.rmtree(workdir / "checkpoints" / "4" / "training" / "d")
    shutil.rmtree(workdir / "checkpoints" / "6")
    lost = kills.lost_checkpoints(tiny_run, workdir, seen)
    assert len(lost) == 2 and "4/training cannot be read" in lost[0] and "6 was complete" in lost[1]


def test_the_table_of_kills_has_a_line_for_each():
    lines = kills.table(
        [
            kills.Kill(1.25, "starting", False, None, 0),
            kills.Kill(9.5, "writing checkpoints/8", True, 6, 6),
        ]
    ).splitlines()
    assert lines[1].split() == ["1", "1.25", "s", "-", "0", "starting"]
    assert lines[2].split() == ["2", "9.50", "s", "6", "6", "writing", "checkpoints/8"]

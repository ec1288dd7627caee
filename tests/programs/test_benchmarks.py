"""The benchmarks run and write what docs/performance.md quotes; their figures are not tested."""

import json

from benchmarks import experiment
from benchmarks import train_step


def test_a_finished_run_is_summarised_without_paths(tiny_run):
    result = experiment.summarise(tiny_run)
    assert round(result["figures"]["AP"], 4) == result["curve"]["eval"][-1]["eval/AP"]
    assert [row["step"] for row in result["curve"]["eval"]] == [3, 6]
    assert result["seed"] == 0 and result["config"]["detector"] == "retinanet"
    assert str(tiny_run) not in json.dumps(result)


def test_the_training_step_is_compared_with_xlas_own_gradients(tiny_config, tmp_path):
    output = tmp_path / "result.json"
    train_step.main(["--config", tiny_config, "--repeats", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["ratio_median_s"] > 0 and result["native"]["median_s"] > 0

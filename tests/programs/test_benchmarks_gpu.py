"""The script for a GPU runs on the packages that such a machine has; the numbers are not tested."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import gpu
from detlab import config as config_lib
from detlab import contract

# What a machine lent for its GPU may lack; torch would be there, and the test must not need it.
LACKING = ("ml_collections", "grain", "pycocotools", "tensorflow_datasets", "orbax", "torch")


@pytest.mark.parametrize("name", gpu.MODELS)
def test_the_settings_that_the_script_repeats_are_those_of_the_experiment(name):
    model = gpu.MODELS[name]
    config = config_lib.load(model.experiment)
    assert gpu.OPTIM | model.optim == config.optim.to_dict()
    fields = contract.with_defaults(config).model.to_dict()
    ours = model.module(**model.fields)
    assert {key: getattr(ours, key) for key in fields} == fields
    assert config.data.canvases[0] == model.canvas and config.data.max_boxes == model.slots
    assert config.train.accumulate == 1 and config.seed == 0


def test_goals_are_ratios_to_the_peer_and_a_share_of_the_peak():
    rows = {
        "retinanet/train": {"ms": 40.0, "share_of_peak": 0.25},
        "torchvision/train": {"ms": 100.0},
        "retinanet/predict": {"ms": 5.0},
        "torchvision/predict": {"missing": "torch cannot be imported"},
    }
    found = {name: goal["measured"] for name, goal in gpu.goals(rows).items()}
    assert found == {
        "training beside torchvision's": 2.5,
        "prediction beside torchvision's": None,
        "share of the peak in training": 0.25,
    }
    assert [goal["goal"] for goal in gpu.goals({}).values()] == [1.5, 2.0, 0.4]


def test_operations_are_those_of_the_product():
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((64, 64)))
    assert gpu.gflop(lowered) == gpu.gflop(lowered.compile()) == 2 * 64**3 / 1e9


def test_the_form_of_each_platform_can_be_had_on_this_one():
    def three(x):
        return lax.platform_dependent(
            x, cpu=lambda x: x + 1, cuda=lambda x: x + 2, default=lambda x: x + 3
        )

    def two(x):
        return lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x + 3)

    found = {
        form: [int(jax.jit(gpu.in_form(f, keywords))(0)) for f in (two, three)]
        for form, keywords in gpu.FORMS.items()
    }
    assert found == {"accelerator": [3, 2], "cpu": [1, 1]}
    assert int(three(0)) == 1


def test_a_row_without_time_and_one_that_takes_too_long_are_said():
    assert gpu.measured("nms", tiny=True, seconds=-1.0) == {"missing": "the time was over"}
    row = gpu.measured("nms", tiny=True, seconds=0.02)
    assert row == {"missing": "it was not through after 0 s"}


@pytest.mark.slow
def test_every_row_runs_on_the_packages_of_a_lent_machine(tmp_path, repository, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({LACKING}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    output = tmp_path / "gpu.json"
    words = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--output", str(output)]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert list(rows) == list(gpu.ROWS) and result["tiny"] and result["machine"]["jax"]
    for name, row in rows.items():
        if name.startswith("torchvision"):
            assert row["missing"].startswith("torch cannot be imported")
            assert f"{name}: torch cannot be imported" in done.stdout
        elif gpu.ROWS[name].kind == "detlab":
            assert "missing" not in row, row
            assert row["ms"] > 0 and row["gflop"] > 0 and row["compile_s"] > 0
            assert "share_of_peak" not in row, "a CPU's peak is not known"
        else:
            assert "missing" not in row and row["forms"]["accelerator"]["ms"] > 0, row
    assert set(rows["nms"]["forms"]) == {"accelerator", "cpu"}
    assert "share of the peak in training: not measured (goal 0.4)" in done.stdout

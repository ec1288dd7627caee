"""The benchmark of compilation runs and writes its rows; the numbers are not tested."""

import json
import pathlib

import pytest

from benchmarks import compilation, models, pages
from detlab import config as config_lib
from detlab import errors


def test_every_model_is_compiled_and_every_shapes_experiment_started():
    assert {model for model, _ in compilation.COMPILED.values()} == set(models.MODELS)
    started = {start.config for start in compilation.STARTS.values()}
    assert started >= {name for name in config_lib.shipped() if name.endswith("_shapes")}
    assert not set(compilation.COMPILED) & set(compilation.STARTS)


def test_an_unknown_row_is_one_sentence():
    with pytest.raises(errors.UserError, match="--only retinanet/trian: .*retinanet/train"):
        compilation.main(["--only", "retinanet/trian"])


@pytest.mark.parametrize("name", compilation.STARTS)
def test_the_configs_of_the_commands_are_valid(name, tmp_path):
    words, _ = compilation.command_of(compilation.STARTS[name], tmp_path, tmp_path / "out")
    values = [x.removeprefix("--config.") for x in words if x.startswith("--config.")]
    config_lib.load(compilation.STARTS[name].config, dict(x.split("=", 1) for x in values))


def test_seconds_count_until_the_file_has_content_and_failures_are_one_sentence(tmp_path):
    mark = tmp_path / "mark"
    waits = f"import time; open({str(mark)!r}, 'w').write('x'); time.sleep(60)"
    taken = compilation.seconds_until(compilation.python("-c", waits), mark, tmp_path)
    assert taken["s"] < 30 and taken["cpu_s"] < 30
    with pytest.raises(errors.UserError, match="no room$"):
        fails = compilation.python("-c", "raise SystemExit('error: no room')")
        compilation.seconds_until(fails, tmp_path / "never", tmp_path)


def test_rows_stand_in_two_tables(tmp_path):
    seconds = {"s": 1.25, "cpu_s": 2.0}
    rows = {
        "fcos/predict": {"lower": seconds, "compile": seconds},
        "detlab.train fcos_shapes": {"cold": seconds, "warm": seconds},
    }
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "compilation_cpu.json").write_text(json.dumps({"rows": rows}))
    lines = pages.compilation_times(pathlib.Path(tmp_path)).splitlines()
    assert lines[2] == "| fcos | 1.2 (2.0) | 1.2 (2.0) |  |  |"
    assert lines[-1] == "| `detlab.train fcos_shapes` | 1.2 (2.0) | 1.2 (2.0) |"

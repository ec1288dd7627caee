"""benchmarks.shapes and benchmarks.convolutions: rows, errors and tables; no number is tested."""

import json

import pytest

from benchmarks import convolutions, pages, shapes
from detlab import config as config_lib
from detlab import errors

FIGURES = {"AP": 0.5, "AP50": 0.75, "AP75": 0.25}


def test_every_experiment_on_shapes_is_run_and_the_first_command_with_three_seeds():
    rows = shapes.rows()
    assert {name for name in config_lib.shipped() if name.endswith("_shapes")} <= set(rows)
    assert [name for name in rows if "@" in name] == ["retinanet_shapes@1", "retinanet_shapes@2"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows}))


def test_finished_rows_stay_and_failed_ones_run_again(tmp_path, monkeypatch, capsys):
    output, started = tmp_path / "shapes.json", []
    write(output, {"fcos_shapes": {"figures": FIGURES}, "ghm_shapes": {"error": "error: no room"}})

    def run(name, runs):
        started.append(name)
        return {"figures": FIGURES, "processor_seconds": 90}

    monkeypatch.setattr(shapes, "run", run)
    names = ["--only", "ghm_shapes", "--only", "fcos_shapes"]
    shapes.main(["--runs", str(tmp_path / "runs"), "--output", str(output), *names])
    assert started == ["ghm_shapes"]
    assert "90 processor s" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["fcos_shapes", "ghm_shapes"] and "figures" in rows["ghm_shapes"]


@pytest.mark.slow
def test_a_run_that_fails_leaves_its_reason(tmp_path):
    (tmp_path / "fcos_shapes").write_text("a file where the folder of the run belongs")
    assert shapes.run("fcos_shapes", tmp_path)["error"].startswith("error: ")


@pytest.mark.parametrize("text, said", [("{", "is not JSON"), ("[]", "has no rows")])
def test_a_broken_file_of_results_is_one_sentence(tmp_path, text, said):
    output = tmp_path / "shapes.json"
    output.write_text(text)
    with pytest.raises(errors.UserError, match=f"{output} {said}"):
        shapes.main(["--runs", str(tmp_path), "--output", str(output), "--only", "fcos_shapes"])


def test_a_table_row_has_seed_figures_and_processor_minutes(tmp_path):
    path = tmp_path / "benchmarks" / "results" / "shapes_cpu.json"
    write(path, {"a_shapes@2": {"figures": FIGURES, "processor_seconds": 90}})
    last = pages.shapes(tmp_path).splitlines()[-1]
    assert last == "| `a_shapes` | 2 | 0.500 | 0.750 | 0.250 | 1.5 |"
    write(path, {"a_shapes": {"error": "error: no room"}})
    with pytest.raises(errors.UserError, match="a_shapes failed .*no room"):
        pages.shapes(tmp_path)


def test_the_convolutions_of_a_detector_are_listed_and_measured_in_both_forms():
    config = config_lib.load("fcos_shapes:tiny")
    found = list(convolutions.shapes_of(config, 64))
    assert found[0].kernel[:3] == (7, 7, 3) and (found[0].height, found[0].stride) == (64, 2)
    smallest = min(found, key=lambda shape: shape.flops)
    row = {"batch": 1, **smallest._asdict(), **convolutions.measure(smallest, 1, 1)}
    assert len(list(convolutions.thinned(found))) <= len(found)
    assert "kernel_gradient" in convolutions.line(row)
    total = convolutions.totals([row, row])[1]["result"]
    assert total["faster"] <= total["chosen"] and total["faster"] <= total["xla"]


@pytest.mark.parametrize("flag", ["--repeats=0", "--batch=-1"])
def test_numbers_below_one_are_one_sentence(flag):
    with pytest.raises(errors.UserError, match="must be at least 1"):
        convolutions.main([flag])

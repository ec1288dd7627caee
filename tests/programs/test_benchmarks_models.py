"""The benchmarks of detectors run and tell what is missing; their figures are not tested."""

import json

import pytest

from benchmarks import models
from benchmarks import overfit
from benchmarks import peers
from detlab import errors


def test_a_misspelt_model_is_named_with_the_nearest():
    with pytest.raises(errors.UserError, match="--only retinanett: .* did you mean retinanet?"):
        models.choose(["retinanett"])
    with pytest.raises(errors.UserError, match="--only fcoss: no such detector; did you mean fcos"):
        overfit.choose(["fcoss"])
    assert models.choose([]) == list(models.MODELS) and overfit.choose(["fcos"]) == ["fcos"]


def test_a_missing_peer_is_one_line(monkeypatch):
    with pytest.raises(SystemExit, match="no_such_package is not installed"):
        peers.load("no_such_package")
    row = dict(canvas=[64, 64], parameters_m=1.0, compile_predict_s=1.0, compile_train_s=1.0)
    row |= dict(predict_ms=10.0, train_ms=20.0, peak_mib=1.0)
    absent = models.line("fcos", {**row, "peer": {"absent": "torch is not installed"}})
    assert absent.endswith("torch is not installed") and "nan" not in absent
    there = models.line("fcos", {**row, "peer": {"predict_ms": 5.0, "train_ms": None}})
    assert there.endswith("2.00, -")


@pytest.mark.slow
def test_a_model_is_measured(capsys, tmp_path):
    """A small form, in a process of its own."""
    small = "depth=18,backbone_width=8,neck_width=16,head_width=16,num_classes=2".split(",")
    arguments = [f"--config.model.{field}" for field in small]
    output = tmp_path / "models.json"
    common = ["--only", "ghm", "--side", "64", "--repeats", "1", "--output", str(output)]
    models.main([*common, *arguments])
    row = json.loads(output.read_text())["models"]["ghm"]
    assert all(row[figure] > 0 for figure in models.FIGURES)
    assert row["canvas"] == [64, 64] and row["peer"] is None
    assert "ghm" in capsys.readouterr().out


@pytest.mark.slow
def test_an_overfit_run_is_written_drawn_and_fails_below_the_bar(tmp_path, capsys):
    entry = overfit.OVERFIT["retinanet"]
    monkey = pytest.MonkeyPatch()
    small = {**entry.model, "backbone_width": 8, "neck_width": 16, "head_width": 16}
    monkey.setitem(overfit.OVERFIT, "retinanet", entry._replace(model=small))
    picture = tmp_path / "overfit.png"
    try:
        with pytest.raises(SystemExit) as ended:
            overfit.main(
                ["--only", "retinanet", "--steps", "21", "--output", str(tmp_path)]
                + ["--picture", str(picture)]
            )
    finally:
        monkey.undo()
    assert ended.value.code == 1 and "missed: retinanet" in capsys.readouterr().out
    result = json.loads((tmp_path / "overfit_retinanet_cpu.json").read_text())
    assert result["cpu_minutes"] > 0 and result["curve"]["eval"][-1][0] == 21
    assert str(tmp_path) not in json.dumps(result) and picture.stat().st_size > 1000


def test_the_eight_images_have_three_objects_and_more(tmp_path):
    overfit.write_images(tmp_path)
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert len(content["images"]) == 8 == len(list((tmp_path / "images").iterdir()))
    counts = [
        sum(a["image_id"] == i["id"] for a in content["annotations"]) for i in content["images"]
    ]
    assert min(counts) >= 3

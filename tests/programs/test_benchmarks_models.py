"""The benchmarks of detectors run and report what is missing; the numbers are not tested."""

import json
import pathlib
import shutil
import sys

import pytest

from benchmarks import command, fine_tuning, models, overfit, peers, turns
from detlab import config as config_lib
from detlab import detectors, errors


def test_a_misspelt_model_is_named_with_the_nearest():
    with pytest.raises(errors.UserError, match="--only retinanett: .* did you mean retinanet?"):
        command.choose(["retinanett"], models.MODELS, "model")
    with pytest.raises(errors.UserError, match="--only fcoss: no such detector; did you mean fcos"):
        command.choose(["fcoss"], overfit.OVERFIT, "detector")
    with pytest.raises(
        errors.UserError, match="--only yolov5: no such network; did you mean yolov5n"
    ):
        command.choose(["yolov5"], fine_tuning.NETWORKS, "network")
    assert command.choose([], models.MODELS, "model") == list(models.MODELS)
    assert command.choose(["fcos"], overfit.OVERFIT, "detector") == ["fcos"]


def test_every_detector_is_overfit_and_measured():
    there = {path.stem for path in pathlib.Path(detectors.__path__[0]).glob("*.py")} - {"__init__"}
    for found in (overfit.OVERFIT.values(), [model.config for model in models.MODELS.values()]):
        assert {config_lib.load(name).detector for name in found} == there


def test_a_missing_peer_is_one_line():
    with pytest.raises(SystemExit, match="no_such_package cannot be imported"):
        peers.load("no_such_package")
    figures = dict(compile_s=1.0, ms=10.0, peak_mib=1.0)
    row = dict(canvas=[64, 64], parameters_m=1.0, peer="opencv/yolov3")
    absent = {**figures, "peer": {"absent": "cv2 cannot be imported"}}
    line = models.line(
        "darknet_yolov3", {**row, "predict": absent, "train": figures | {"peer": None}}
    )
    assert line.endswith("opencv/yolov3: cv2 cannot be imported")
    there = {**figures, "peer": {"ms": 5.0}, "ratio": 2.0}
    line = models.line(
        "darknet_yolov3", {**row, "predict": there, "train": figures | {"peer": None}}
    )
    assert line.endswith("2.00, -")


def test_a_python_that_has_no_peers_or_is_none_is_said(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")  # hides an installed one
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    task = models.Task("retinanet", "predict", 64, 1)
    found = models.start_peer("retinanet", task, [64, 64], sys.executable, tmp_path)
    assert "cannot be imported" in found["absent"] and "pip install torch" in found["absent"]
    assert models.start_peer("ghm", task, [64, 64], sys.executable, tmp_path) is None
    with pytest.raises(errors.UserError, match="--peer_python .*nowhere cannot be run"):
        models.start_peer("retinanet", task, [64, 64], str(tmp_path / "nowhere"), tmp_path)


def test_a_program_that_fails_and_files_that_cannot_be_are_one_sentence(tmp_path):
    with pytest.raises(
        errors.UserError, match="^python -m detlab.train: nowhere is neither a config file nor"
    ):
        command.run_module("detlab.train", "--config", "nowhere")
    (tmp_path / "file").touch()
    for arguments in (
        ["--weights=w", "--data=d", f"--output={tmp_path / 'file'}"],
        ["--weights=w", "--data=d", f"--output={tmp_path / 'file' / 'more'}"],
    ):
        with pytest.raises(errors.UserError, match="cannot be created as a folder"):
            fine_tuning.main(arguments)


PROGRAM = """
import sys
from benchmarks import turns
turns.serve(lambda: print("noise"), {"known": 1}, lambda: {"after": 2})
"""


def test_two_programs_take_turns():
    with turns.Worker([sys.executable, "-c", PROGRAM]) as a:
        with turns.Worker([sys.executable, "-c", PROGRAM]) as b:
            assert a.ready == b.ready == {"known": 1}
            assert all(worker.run() >= 0 for worker in (a, b, a, b))
            assert a.close()["after"] == 2
    with pytest.raises(turns.Failed, match="ValueError: broken"):
        turns.Worker([sys.executable, "-c", "raise ValueError('broken')"])


@pytest.mark.slow
def test_a_model_is_measured(capsys, tmp_path):
    """A small form, in a separate process."""
    small = "depth=18,backbone_width=8,neck_width=16,head_width=16,num_classes=2".split(",")
    arguments = [f"--config.model.{field}" for field in small]
    output = tmp_path / "models.json"
    common = ["--only", "ghm", "--side", "64", "--repeats", "1", "--output", str(output)]
    models.main([*common, *arguments])
    row = json.loads(output.read_text())["models"]["ghm"]
    for program in models.PROGRAMS:
        assert all(row[program][figure] > 0 for figure in ("compile_s", "ms", "peak_mib"))
    assert row["canvas"] == [64, 64] and row["peer"] is None
    assert "ghm" in capsys.readouterr().out


@pytest.mark.slow
def test_an_overfit_run_is_written_drawn_and_fails_below_the_bar(tmp_path, capsys):
    small = "backbone_width=8,neck_width=16,head_width=16".split(",")
    picture = tmp_path / "overfit.png"
    with pytest.raises(SystemExit) as ended:
        overfit.main(
            ["--only", "retinanet", "--steps", "21", "--output", str(tmp_path)]
            + ["--picture", str(picture), *(f"--config.model.{field}" for field in small)]
        )
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


def test_fine_tuning_trains_by_equal_settings_and_says_where_weights_do_not_help(
    tiny_run, tmp_path, monkeypatch, capsys
):
    """Both runs are copies of one finished run here, so neither is better."""
    calls = []

    def call(module, *arguments):
        calls.append(
            (module, [a for a in arguments if not a.startswith(("--workdir", "--output"))])
        )
        if module == "detlab.train":
            shutil.copytree(tiny_run, arguments[-1].removeprefix("--workdir="))

    monkeypatch.setattr(command, "run_module", call)
    picture = tmp_path / "curves.png"
    with pytest.raises(SystemExit) as ended:
        fine_tuning.main(
            ["--weights=files", "--data=bccd", "--only=yolo_fastest", f"--output={tmp_path}"]
            + [f"--picture={picture}", "--config.train.epochs=2"]
        )
    assert ended.value.code == 1
    assert "weights did not help: yolo_fastest" in capsys.readouterr().out
    (_, convert), (_, tuned), (_, scratch) = calls
    assert "--reset_classes" in convert and "--cfg=files/yolo-fastest-1.1.cfg" in convert
    assert [a for a in tuned if a not in scratch][0].startswith("--config.init_from=")
    assert [a for a in tuned if not a.startswith("--config.init_from")] == scratch
    assert {"--config.data.root=bccd", "--config.train.epochs=2"} < set(scratch)
    result = json.loads((tmp_path / "fine_tuning_yolo_fastest.json").read_text())
    assert result["weights"]["curve"]["eval"] == result["scratch"]["curve"]["eval"] != []
    assert str(tmp_path) not in json.dumps(result) and picture.stat().st_size > 1000

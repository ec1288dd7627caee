"""Published weights of YOLOv5 detect on photographs what the reference detected."""

import json
import shutil

import parity_runs
import pytest

from benchmarks import command
from benchmarks.parity import checks
from benchmarks.parity.yolov5 import model as model_lib
from detlab.converters.readers import files


def test_published_weights_find_on_a_photograph_what_the_reference_found(shared_dir):
    """From the file of the photograph, through the letterbox and back."""
    folder = shared_dir / "parity" / "yolo"
    info = json.loads((folder / "yolov5n-v6-photos.json").read_text())
    settings = dict(score_threshold=info["conf"], nms_iou=info["iou"], multi_label=False)
    file = files.read(shared_dir / "weights" / info["weights"])
    model = model_lib.Model(file, "photos", command.QUICK, **settings)
    recorded = info["images"]["zidane.jpg"]
    image = model_lib.read_picture(shared_dir / "images" / "zidane.jpg")
    found, _ = model.on_picture(image, tuple(recorded["input_hw"]))
    rows = [[*d["xyxy"], d["score"], d["class"]] for d in recorded["detections"]]
    theirs = model_lib.listed(rows)
    assert len(theirs.scores) == 3
    for line in checks.detections([found], [theirs], scores=model_lib.LISTED_SCORES):
        assert line.passed, line


@pytest.mark.slow
def test_other_thresholds_are_noticed(shared_dir, capsys, tmp_path):
    name, shared = "yolov5n-v6-photos", shared_dir / "parity" / "yolo"
    info = json.loads((shared / f"{name}.json").read_text())
    info.update(images={}, conf=0.3)
    (tmp_path / f"{name}.json").write_text(json.dumps(info))
    shutil.copy(shared / f"{name}.npz", tmp_path)
    run = parity_runs.run(capsys, tmp_path, "--weights", str(shared_dir / "weights"))
    assert run.status == 1 and run.missed == ["detections count"]
    assert {line for line in run.passed if line.startswith("map")} == {
        f"map raw{i}" for i in range(3)
    }

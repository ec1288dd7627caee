"""YOLOv5 is the reference's: made-up and published weights, photographs, targets and losses."""

import json
import shutil

import numpy as np
import parity_runs
import pytest
import tiny

from benchmarks import parity_checks
from benchmarks import parity_yolov5
from detlab.converters.readers import files

CASES = [name for name, kind in parity_runs.runnable("yolo").items() if kind is parity_yolov5]


@pytest.mark.parametrize("name", parity_runs.parameters(CASES))
def test_the_shared_case_passes_in_full(name, shared_dir, capsys):
    run = parity_runs.in_full(capsys, shared_dir / "parity", name)
    kinds = {line.split()[0] for line in run.passed}
    if "v6" not in name:
        assert kinds >= {"stage", "map", "decoded", "targets", "loss", "gradient"}


def test_published_weights_find_on_a_photograph_what_the_reference_found(shared_dir):
    """From the file of the photograph, through the letterbox and back."""
    folder = shared_dir / "parity" / "yolo"
    info = json.loads((folder / "yolov5n-v6-photos.json").read_text())
    settings = dict(score_threshold=info["conf"], nms_iou=info["iou"], multi_label=False)
    file = files.read(shared_dir / "weights" / info["weights"])
    model = parity_yolov5._Model(file, "photos", **settings)
    model._predict = tiny.jit(model._detect)
    recorded = info["images"]["zidane.jpg"]
    image = parity_yolov5._read(shared_dir / "images" / "zidane.jpg")
    found, _ = model.on_picture(image, tuple(recorded["input_hw"]))
    rows = [[*d["xyxy"], d["score"], d["class"]] for d in recorded["detections"]]
    theirs = parity_yolov5._rows(np.array(rows))
    assert len(theirs.scores) == 3
    for line in parity_checks.detections([found], [theirs], scores=parity_yolov5.LISTED_SCORES):
        assert line.passed, line


def test_photographs_go_through_the_letterbox_of_the_reference(shared_dir):
    """The recorded sizes and two made up, of which half a px is rounded to even: 512.5, 517.5."""

    class Looks(parity_yolov5._Model):
        def __init__(self):
            pass

        def __call__(self, images):
            self.images = images
            return None, None, []

    folder = shared_dir / "parity" / "yolo"
    images = json.loads((folder / "yolov5n-v6-photos.json").read_text())["images"]
    sizes = {name: tuple(recorded["size_wh"]) for name, recorded in images.items()}
    assert sizes == {
        "zidane.jpg": (1280, 720), "bus.jpg": (810, 1080), "dog.jpg": (768, 576),
        "person.jpg": (640, 424), "horses.jpg": (773, 512),
    }  # fmt: skip
    images |= {
        "even": {"size_wh": [1024, 820], "input_hw": [512, 640], "pad_wh": [0, 0]},
        "odd": {"size_wh": [828, 1024], "input_hw": [640, 544], "pad_wh": [13, 0]},
    }
    for name, recorded in images.items():
        width, height = recorded["size_wh"]
        canvas = parity_yolov5._canvas(height, width)
        assert canvas == tuple(recorded["input_hw"]), name
        model = Looks()
        model.on_picture(np.full((height, width, 3), 255, np.uint8), canvas)
        [image] = model.images
        left, top = (round(border - 0.1) for border in recorded["pad_wh"])
        right, bottom = (round(border + 0.1) for border in recorded["pad_wh"])
        assert (image[top : canvas[0] - bottom, left : canvas[1] - right] == 255).all(), name
        content = (canvas[0] - top - bottom) * (canvas[1] - left - right)
        assert (image == parity_yolov5.GREY).all(axis=2).sum() == image[..., 0].size - content


def test_narrow_boxes_are_told_by_what_moving_leaves_of_them():
    """Class 45 of release 3.0 is moved by 184320 px, where float32 has steps of 1/64 px."""
    module = parity_yolov5.yolov5.YOLOv5(block="csp")
    boxes = np.float32([[10, 10, 10.01, 40], [10, 10, 10.02, 40], [10, 10, 10.01, 40]])
    labels = np.array([45, 45, 0])
    np.testing.assert_array_equal(parity_yolov5._solid(boxes, labels, module), [False, True, True])


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

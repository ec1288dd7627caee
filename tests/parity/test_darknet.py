"""Darknet's networks match darknet: raw heads, decoding, candidates, detections, photographs."""

import hashlib
import json
import shutil

import parity_runs
import pytest

from benchmarks.parity import darknet
from detlab.converters import convert
from detlab.converters.readers import darknet as reader
from detlab.darknet import cfg as darknet_cfg

CASES = parity_runs.runnable("yolo", darknet.RUNNER)


def copy_case(shared_dir, folder, name, text, other):
    """Copies a recorded case into a new folder, with other text in its cfg."""
    recorded = shared_dir / "parity" / "yolo"
    folder.mkdir()
    for suffix in ("json", "npz"):
        shutil.copy(recorded / f"{name}.{suffix}", folder)
    cfg = (recorded / f"{name}.cfg").read_text()
    (folder / f"{name}.cfg").write_text(cfg.replace(text, other))


def test_a_case_that_needs_more_than_detlab_has_is_missing_with_the_reason(
    shared_dir, capsys, tmp_path
):
    folder = tmp_path / "yolo"
    copy_case(shared_dir, folder, "yolov2-tiny", "[region]", "[region]\ntree=9k.tree")
    run = parity_runs.run(capsys, tmp_path, "--case", "yolo/yolov2-tiny")
    assert run.status == 1 and "1 cases: 0 passed, 0 failed, 1 missing" in run.text
    (line,) = [x for x in run.text.splitlines() if x.startswith("missing  yolo/yolov2-tiny:")]
    assert "[region] has tree='9k.tree', an option that is not implemented" in line
    assert str(folder) not in line


@pytest.mark.parametrize("name", parity_runs.parameters(CASES))
def test_the_shared_case_passes_in_full(name, shared_dir, capsys):
    """Also published weights, which find the recorded objects on photographs."""
    parity_runs.in_full(capsys, shared_dir / "parity", name)


@pytest.mark.parametrize(
    "name",
    [
        "mixed",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("yolov3-tiny-prn", "yolov7-tiny", "yolov2-tiny", "gaussian-yolov3")
        ),
    ],
)
def test_the_weights_of_a_case_are_converted_and_come_back_byte_for_byte(
    name, shared_dir, tmp_path
):
    folder = shared_dir / "parity" / "yolo"
    cfg, info = folder / f"{name}.cfg", json.loads((folder / f"{name}.json").read_text())
    weights, back = tmp_path / "made.weights", tmp_path / "back.weights"
    tensors = darknet.made_up(info)
    network = darknet_cfg.read(cfg)
    reader.write(weights, network, reader.Weights(reader.Header(), tensors))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == info["weights_sha256"] and weights.stat().st_size == info["weights_bytes"]
    common = ("--config", "darknet_coco", "--output", str(tmp_path / "folder"))
    convert.main(["--input", str(weights), "--cfg", str(cfg), *common])
    convert.main(["--reverse", "--input", str(tmp_path / "folder"), "--output", str(back)])
    assert back.read_bytes() == weights.read_bytes()
    assert back.with_suffix(".cfg").read_text() == cfg.read_text()


@pytest.mark.slow
def test_another_suppression_is_noticed(shared_dir, capsys, tmp_path):
    folder = tmp_path / "yolo"
    copy_case(shared_dir, folder, "yolov4-tiny", "scale_x_y=1.05", "scale_x_y=1.1")
    info = json.loads((folder / "yolov4-tiny.json").read_text())
    (folder / "yolov4-tiny.json").write_text(json.dumps(info | {"nms": 0.2}))
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    assert {"map yolo30_out", "candidates boxes"} <= set(run.missed)
    assert {"map yolo30_raw", "map yolo37_raw", "candidates scores"} <= set(run.passed)

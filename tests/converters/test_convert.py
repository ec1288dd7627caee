"""The command line, from a file to a weights folder that a detector starts from."""

import json
import re
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from converters import convert
from converters import mapping
from converters.tables import mmdet_retinanet
from converters.tables import torchvision_resnet
from detlab import checkpoint
from detlab import config as config_lib
from detlab import errors

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        detector="retinanet",
        model=dict(num_classes=2, depth=18, backbone_width=8, neck_width=16, head_width=16),
        data=dict(class_names=()),
    ))
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def shapes(config_file):
    return convert.target_shapes(config_lib.load(str(config_file)))


def source_tensors(shapes, table, extra):
    """A state dict that fits: random leaves, taken backwards through the table."""
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return {**mapping.reverse(leaves, table), **extra}


@pytest.fixture
def torchvision_file(shapes, pth, tmp_path):
    extra = {
        "fc.weight": np.zeros((10, 64), np.float32),
        "fc.bias": np.zeros(10, np.float32),
        "bn1.num_batches_tracked": np.array(5),
    }
    tensors = source_tensors(shapes, torchvision_resnet.table(), extra)
    return pth.write_state_dict(tmp_path / "resnet18.pth", tensors), tensors


@pytest.fixture
def mmdet_file(shapes, pth, tmp_path):
    extra = {"backbone.bn1.num_batches_tracked": np.array(5)}
    tensors = source_tensors(shapes, mmdet_retinanet.table(), extra)
    meta = {"CLASSES": ("cat", "dog")}
    return pth.write_state_dict(tmp_path / "retinanet.pth", tensors, meta=meta), tensors


def run(config_file, file, output, *more):
    convert.main(
        ["--config", str(config_file), "--input", str(file), "--output", str(output), *more]
    )


def test_torchvision_file_fills_the_backbone_and_nothing_else(
    config_file, torchvision_file, shapes, tmp_path, capsys
):
    path, tensors = torchvision_file
    run(config_file, path, tmp_path / "out" / "weights", "--source", "torchvision")
    weights = checkpoint.load_weights(tmp_path / "out" / "weights")
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert leaves.keys() == {p for p in shapes if p.split("/")[1] == "backbone"}
    np.testing.assert_array_equal(
        leaves["params/backbone/stem/conv/kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        leaves["batch_stats/backbone/stem/norm/var"], tensors["bn1.running_var"]
    )
    report = json.loads((tmp_path / "out" / "weights" / "report.json").read_text())
    status = {row["source"] or row["target"]: row["status"] for row in report["rows"]}
    assert status["conv1.weight"] == "matched"
    assert status["fc.bias"] == "dropped: ImageNet classifier"
    assert status["params/head/cls_logits/bias"] == "left initialised"
    printed = capsys.readouterr().out
    assert re.search(
        r"conv1\.weight +params/backbone/stem/conv/kernel +7x7x3x8 .* matched", printed
    )


def test_mmdet_file_fills_the_detector_and_brings_its_class_names(
    config_file, mmdet_file, shapes, tmp_path
):
    path, tensors = mmdet_file
    run(config_file, path, tmp_path / "weights", "--source", "mmdet")
    weights = checkpoint.load_weights(tmp_path / "weights")
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert {p: x.shape for p, x in leaves.items()} == shapes
    np.testing.assert_array_equal(
        leaves["params/head/box_deltas/kernel"],
        tensors["bbox_head.retina_reg.weight"].transpose(2, 3, 1, 0),
    )
    assert weights.info["class_names"] == ["cat", "dog"]
    assert weights.info["config"]["model"]["num_classes"] == 2
    assert weights.info["converted_from"] == {"file": "retinanet.pth", "table": "mmdet RetinaNet"}


def test_detector_starts_from_the_folder(config_file, mmdet_file, shapes, tmp_path):
    run(config_file, mmdet_file[0], tmp_path / "weights")
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    tree = mapping.nest(zeros)
    merged = checkpoint.merge(
        tree.pop("params"), tree, checkpoint.load_weights(tmp_path / "weights"), skip=()
    )
    assert set(merged.loaded) == set(shapes) and not merged.initialised


@pytest.mark.parametrize("kind", ["torchvision", "mmdet"])
def test_auto_picks_the_table_by_the_names(kind, request, config_file, tmp_path):
    path, _ = request.getfixturevalue(f"{kind}_file")
    run(config_file, path, tmp_path / "weights")
    report = json.loads((tmp_path / "weights" / "report.json").read_text())
    assert report["table"].startswith(kind)


def test_bgr_flag_flips_the_stem_only(config_file, torchvision_file, tmp_path):
    path, _ = torchvision_file
    for name, flags in (("rgb", []), ("bgr", ["--bgr"])):
        run(config_file, path, tmp_path / name, *flags)
    rgb, bgr = (
        mapping.flatten(checkpoint.load_weights(tmp_path / name).params) for name in ("rgb", "bgr")
    )
    different = [p for p in rgb if not np.array_equal(rgb[p], bgr[p])]
    assert different == ["backbone/stem/conv/kernel"]
    np.testing.assert_array_equal(bgr[different[0]], rgb[different[0]][:, :, ::-1])


def test_published_retinanet_fits_the_detector_with_its_default_fields(shared_dir):
    case = json.loads((shared_dir / "parity" / "retinanet_r50_fpn.json").read_text())
    model = {"num_classes": case["num_classes"]}
    config = ml_collections.ConfigDict({"detector": "retinanet", "model": model})
    # Zeros that take no memory, as only names and shapes count here.
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s, _ in case["state_dict"]}
    _, report = mapping.convert(tensors, mmdet_retinanet.table(), convert.target_shapes(config))
    assert {row.status.split(":")[0] for row in report} == {"matched", "dropped"}


# ---- What a user can do wrong: one sentence, exit code 2, no traceback, nothing written. ----


def refused(*arguments):
    with pytest.raises(errors.UserError) as info:
        run(*arguments)
    return str(info.value)


def test_file_of_another_family_is_named(config_file, torchvision_file, mmdet_file, pth, tmp_path):
    output = tmp_path / "weights"
    text = refused(config_file, torchvision_file[0], output, "--source", "mmdet")
    assert "is not an mmdet RetinaNet; it looks like a torchvision ResNet" in text
    text = refused(config_file, mmdet_file[0], output, "--source", "torchvision")
    assert "is not a torchvision ResNet; it looks like an mmdet RetinaNet" in text
    pth.storages.clear()
    other = pth.write_state_dict(tmp_path / "other.pth", {"encoder.weight": np.ones(2, np.float32)})
    text = refused(config_file, other, output)
    assert "is not a torchvision ResNet or an mmdet RetinaNet; its names begin with enc" in text
    assert not output.exists()


def test_missing_or_wrong_input_is_named(config_file, tmp_path):
    text = refused(config_file, tmp_path / "absent.pth", tmp_path / "weights")
    assert "absent.pth: cannot be read: No such file" in text
    text = refused(config_file, config_file, tmp_path / "weights")
    assert "tiny.py: not a PyTorch file, it looks like a text file" in text


def test_output_that_exists_or_cannot_be_made_is_refused_before_the_work(config_file, tmp_path):
    assert "exists already" in refused(config_file, tmp_path / "absent.pth", tmp_path)
    blocked = config_file / "weights"  # below a file
    assert "cannot be made" in refused(config_file, tmp_path / "absent.pth", blocked)


def test_weights_of_another_depth_list_the_differences(config_file, torchvision_file, tmp_path):
    text = refused(
        config_file, torchvision_file[0], tmp_path / "weights", "--config.model.depth=34"
    )
    assert "resnet18.pth and" in text and "tiny.py: the file does not fit the detector" in text
    assert "layer1.2.conv1.weight of the detector's torchvision ResNet weights is not in" in text


def test_number_of_classes_of_the_file_is_told(config_file, mmdet_file, tmp_path):
    text = refused(config_file, mmdet_file[0], tmp_path / "weights", "--config.model.num_classes=5")
    assert "knows 2 classes and config.model.num_classes is 5" in text


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_bgr_checkpoint_without_the_flag_is_refused(config_file, shapes, pth, tmp_path, key):
    tensors = source_tensors(shapes, mmdet_retinanet.table(), {})
    meta = {key: "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], to_rgb = False)"}
    path = pth.write_state_dict(tmp_path / "caffe.pth", tensors, meta=meta)
    assert "convert it with --bgr" in refused(config_file, path, tmp_path / "weights")
    run(config_file, path, tmp_path / "weights", "--bgr")


def test_command_line_prints_one_sentence_and_exits_with_2(config_file, repository, tmp_path):
    command = [sys.executable, "-m", "converters.convert", "--config", str(config_file)]
    command += ["--input", str(tmp_path / "absent.pth"), "--output", str(tmp_path / "weights")]
    for more in ([], ["--source", "keras"]):
        done = subprocess.run(
            [*command, *more], cwd=repository, check=False, capture_output=True, text=True
        )
        assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
        assert ("invalid choice: 'keras'" if more else "error: ") in done.stderr

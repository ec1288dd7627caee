"""Files of other code bases become weights folders that detectors start from."""

import json
import re

import conversions
import ml_collections
import numpy as np
import pytest
import tables

from detlab import contract, errors
from detlab.converters import mapping, target
from detlab.converters.readers import contents
from detlab.converters.tables import mmdet_retinanet, yolov5
from detlab.run import checkpoint
from detlab.run import state as state_lib


def test_torchvision_file_fills_the_backbone_and_nothing_else(
    config_file, torchvision_file, shapes, tmp_path, capsys
):
    path, tensors = torchvision_file
    conversions.run(config_file, path, tmp_path / "out" / "weights", "--source", "torchvision")
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
    conversions.run(config_file, path, tmp_path / "weights", "--source", "mmdet")
    weights = checkpoint.load_weights(tmp_path / "weights")
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert {p: x.shape for p, x in leaves.items()} == shapes
    np.testing.assert_array_equal(
        leaves["params/head/box_deltas/kernel"],
        tensors["bbox_head.retina_reg.weight"].transpose(2, 3, 1, 0),
    )
    assert weights.info["class_names"] == ["cat", "dog"]
    assert weights.info["config"]["model"]["num_classes"] == 2
    assert weights.info["converted_from"] == {
        "file": "retinanet.pth",
        "table": "mmdet RetinaNet",
        "bgr": False,
    }


def test_detector_starts_from_the_folder(config_file, mmdet_file, shapes, tmp_path):
    conversions.run(config_file, mmdet_file[0], tmp_path / "weights")
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    tree = mapping.nest(zeros)
    merged = checkpoint.merge(
        tree.pop("params"), tree, checkpoint.load_weights(tmp_path / "weights"), skip=()
    )
    assert set(merged.loaded) == set(shapes) and not merged.initialised


def test_published_retinanet_fits_the_detector_with_its_default_fields(shared_dir):
    case = json.loads((shared_dir / "parity" / "retinanet_r50_fpn.json").read_text())
    model = {"num_classes": case["num_classes"]}
    config = ml_collections.ConfigDict({"detector": "retinanet", "model": model})
    # Zeros that take no memory: only names and shapes matter here.
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s, _ in case["state_dict"]}
    _, report = mapping.convert(tensors, mmdet_retinanet.table(), target.shapes(config))
    assert {row.status.split(":")[0] for row in report} == {"matched", "dropped"}


def test_class_layers_of_other_classes_are_left_out_only_when_asked_for(
    config_file, mmdet_file, shapes, tmp_path, capsys
):
    path, tensors = mmdet_file
    five = "--config.model.num_classes=5"
    conversions.run(config_file, path, tmp_path / "weights", five, "--reset_classes")
    printed = capsys.readouterr().out
    assert re.search(r"bbox_head.retina_cls.weight .* dropped: for other classes", printed)
    assert re.search(r"params/head/cls_logits/kernel .* initialised anew", printed)
    weights = checkpoint.load_weights(tmp_path / "weights")
    left_out = {"params/head/cls_logits/kernel", "params/head/cls_logits/bias"}
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert set(leaves) == set(shapes) - left_out
    assert set(weights.info["anew"]) == left_out and "class_names" not in weights.info


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--reset_classes"], "dropped by --reset_classes"),
        ([], "for 2 classes in the weights and 5 in the model"),
    ],
)
def test_training_starts_with_other_classes_and_says_what_is_initialised(
    config_file, mmdet_file, tmp_path, capsys, flags, reason
):
    conversions.run(config_file, mmdet_file[0], tmp_path / "weights", *flags)
    five = conversions.ml_config(config_file, {"model.num_classes": "5"})
    five.init_from = str(tmp_path / "weights")
    detector = contract.build(five)
    params = state_lib.initial_weights(detector, five).params
    assert params["head"]["cls_logits"]["bias"].shape == (5 * 9,)
    printed = capsys.readouterr().out
    assert ", 2 initialised" in printed
    assert f"initialised ({reason}): params/head/cls_logits/" in printed


def test_a_backbone_is_complete_and_the_rest_of_the_detector_stays(
    config_file, torchvision_file, shapes, tmp_path
):
    conversions.run(config_file, torchvision_file[0], tmp_path / "weights")
    merged = tables.start(tmp_path / "weights", conversions.ml_config(config_file))
    assert set(merged.loaded) == {path for path in shapes if path.split("/")[1] == "backbone"}
    with pytest.raises(errors.UserError, match="not in the file: params/backbone/stage1_block2/"):
        tables.start(
            tmp_path / "weights", conversions.ml_config(config_file, {"model.depth": "34"})
        )


def test_ghm_starts_from_a_whole_retinanet_with_counts_of_its_own(
    config_file, mmdet_file, shapes, tmp_path
):
    conversions.run(config_file, mmdet_file[0], tmp_path / "weights")
    config = conversions.ml_config(config_file)
    config.detector = "ghm"
    merged = tables.start(tmp_path / "weights", config)
    assert set(merged.loaded) == set(shapes)
    assert set(merged.initialised) == {"loss_state/cls_counts", "loss_state/box_counts"}
    config.detector, config.model.norm_groups = "fcos", 4
    with pytest.raises(
        errors.UserError, match="25 not in the file: params/box_scales.*; 10 not in the model"
    ):
        tables.start(tmp_path / "weights", config)


def test_npz_files_are_taken_too(config_file, mmdet_file, shapes, tmp_path):
    np.savez(tmp_path / "weights.npz", **mmdet_file[1])
    conversions.run(config_file, tmp_path / "weights.npz", tmp_path / "weights")
    weights = checkpoint.load_weights(tmp_path / "weights")
    assert set(mapping.flatten({"params": weights.params, **weights.state})) == set(shapes)


def test_names_that_could_steer_a_terminal_are_escaped(config_file, shapes, pth, tmp_path, capsys):
    extra = {"\x1b]0;x\x07.num_batches_tracked": np.zeros((), np.int64)}
    tensors = conversions.source_tensors(shapes, mmdet_retinanet.table(), extra)
    conversions.run(
        config_file, pth.write_state_dict(tmp_path / "a.pth", tensors), tmp_path / "weights"
    )
    assert "\x1b" not in capsys.readouterr().out
    pth.storages.clear()
    path = pth.write_state_dict(tmp_path / "b.pth", {**tensors, "\x1b[2J": np.ones(2, np.float32)})
    assert "\\x1b[2J of the file fits no leaf" in conversions.refused(
        config_file, path, tmp_path / "other"
    )


def test_missing_or_wrong_input_is_named(config_file, tmp_path):
    text = conversions.refused(config_file, tmp_path / "absent.pth", tmp_path / "weights")
    assert "absent.pth: cannot be read: No such file" in text
    text = conversions.refused(config_file, config_file, tmp_path / "weights")
    assert "tiny.py: not a weight file of a known format; it looks like a text file" in text


def test_output_that_exists_or_cannot_be_made_is_refused_before_the_work(config_file, tmp_path):
    assert "already exists" in conversions.refused(config_file, tmp_path / "absent.pth", tmp_path)
    blocked = config_file / "weights"  # below a file
    assert "cannot be created" in conversions.refused(config_file, tmp_path / "absent.pth", blocked)


def test_weights_of_another_depth_list_the_differences(config_file, torchvision_file, tmp_path):
    text = conversions.refused(
        config_file, torchvision_file[0], tmp_path / "weights", "--config.model.depth=34"
    )
    assert "resnet18.pth and" in text and "tiny.py: the file does not fit the detector" in text
    assert "layer1.2.conv1.weight of the detector's torchvision ResNet weights is not in" in text


# ---- Numbers of classes and of channels. ----


@pytest.fixture
def retinanet_of(shapes, pth, tmp_path):
    """`retinanet_of(names)` -> a file of the tiny RetinaNet, which predicts 2 classes."""

    def make(*names):
        tensors = conversions.source_tensors(shapes, mmdet_retinanet.table(), {})
        meta = {"meta": {"CLASSES": names}} if names else {"epoch": 3}
        return pth.write_state_dict(tmp_path / "x.pth", tensors, **meta)

    return make


@pytest.mark.parametrize("names", [(), ("cat", "dog"), ("a", "b", "c")])
def test_the_tensors_say_the_number_of_classes(config_file, retinanet_of, tmp_path, names):
    path = retinanet_of(*names)
    text = conversions.refused(config_file, path, tmp_path / "w", "--config.model.num_classes=5")
    told = "has 2 class names" if len(names) == 2 else "predicts 2 classes"
    assert text == (
        f"{path} {told}, but config.model.num_classes is 5; add --config.model.num_classes=2, or"
        " --reset_classes to train on other classes."
    )
    assert not (tmp_path / "w").exists()


def test_class_names_of_another_number_are_left_out(config_file, retinanet_of, tmp_path, capsys):
    path = retinanet_of("a", "b", "c")
    conversions.run(config_file, path, tmp_path / "w")
    assert "class_names" not in checkpoint.load_weights(tmp_path / "w").info
    assert (
        f"{path} has 3 class names, but predicts 2 classes, so they are left out; give them with"
        " --names FILE.\n"
    ) in capsys.readouterr().out


def test_class_names_of_a_text_file_come_before_those_of_the_weights(
    config_file, retinanet_of, torchvision_file, tmp_path
):
    names = tmp_path / "my.names"
    names.write_bytes("Käfer\r\nMücke\r\n".encode("utf-8-sig"))
    conversions.run(config_file, retinanet_of("a", "b"), tmp_path / "w", "--names", str(names))
    assert checkpoint.load_weights(tmp_path / "w").info["class_names"] == ["Käfer", "Mücke"]
    path, _ = torchvision_file
    text = conversions.refused(config_file, path, tmp_path / "v", "--names", str(names))
    assert text == f"remove --names: {path} is a torchvision ResNet, which predicts no classes."


def test_more_differences_than_the_classes_are_listed(config_file, retinanet_of, tmp_path):
    more = ("--config.model.num_classes=5", "--config.model.head_width=8")
    text = conversions.refused(config_file, retinanet_of(), tmp_path / "w", *more)
    assert "the number of classes differs" in text and "\n" in text


@pytest.mark.parametrize(
    "channels, words",
    [
        (
            1,
            "its network takes grey images (1 channel), but the detector RGB (3 channels); in"
            " PyTorch, weight.repeat(1, 3, 1, 1) / 3 of this layer gives a network for RGB that"
            " computes the same for grey images",
        ),
        (
            4,
            "its network takes images of 4 channels, but the detector RGB (3 channels); a network"
            " for images of 4 channels has to be trained on RGB",
        ),
    ],
)
def test_images_of_other_channels_are_told_in_words(
    config_file, torchvision_file, pth, tmp_path, channels, words
):
    _, tensors = torchvision_file
    pth.storages.clear()
    stem = np.zeros((8, channels, 7, 7), np.float32)
    path = pth.write_state_dict(tmp_path / "x.pth", {**tensors, "conv1.weight": stem})
    text = conversions.refused(config_file, path, tmp_path / "w")
    assert text.endswith(
        "(1 differences); choose a config for its network:\n  conv1.weight ->"
        " params/backbone/stem/conv/kernel has shape"
        f" (7, 7, {channels}, 8), but the detector needs (7, 7, 3, 8): {words}"
    )


def test_a_focus_stem_tells_its_channels():
    """Four pixels of one channel in front of the first convolution of a YOLOv5 up to 5.0."""
    assert yolov5_channels("model.0.conv.conv.weight", 4) == 1
    assert yolov5_channels("model.0.conv.weight", 6) == 6


def yolov5_channels(name, count):
    tensors = {
        "model.24.m.0.bias": np.zeros(21, np.float32),
        name: np.zeros((16, count, 3, 3), np.float32),
    }
    with pytest.raises(errors.UserError) as info:
        yolov5.fields(contents.Contents("made", tensors, None, {}))
    (grey, number) = re.search(
        r"takes (?:(grey)|images of (\d) channels)", str(info.value)
    ).groups()
    assert str(info.value).endswith(f"(the layer is {name.removesuffix('.weight')})")
    return 1 if grey else int(number)
